"""From what each component says of itself to what the process answers a probe. Pure."""

from collections.abc import Iterable

from shared.wire import ComponentHealth, HealthReport


def live(components: Iterable[ComponentHealth]) -> HealthReport:
    """The process runs and no component has failed for good."""
    listed = tuple(components)
    return HealthReport(ok=all(component.live for component in listed), components=listed)


def ready(components: Iterable[ComponentHealth]) -> HealthReport:
    """Work can be taken now: every component is live and ready."""
    listed = tuple(components)
    return HealthReport(ok=all(component.live and component.ready for component in listed), components=listed)


def reasons(report: HealthReport) -> str:
    """What stands in the way, as one line: `name: reason` of each component that is not ready."""
    return "; ".join(
        f"{component.name}: {component.reason}"
        for component in report.components
        if not (component.live and component.ready)
    )
