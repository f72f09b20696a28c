"""Process 2: the asyncio training loop."""
