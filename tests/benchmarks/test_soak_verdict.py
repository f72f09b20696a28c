"""What a soak is judged by: every kind of bad run is found, and only those."""

from dataclasses import replace

import pytest

from benchmarks.soak_verdict import Seen, growth, longest_pause, lost_or_doubled, verdicts_on

NUM_RECORDS, PER_STEP = 6, 2
MINUTES_20 = 1200


def ledger(num_steps: int) -> list[dict[str, object]]:
    """Epochs of six records, two a step, each epoch in an order of its own."""
    lines = []
    for step in range(num_steps):
        epoch, place = divmod(step, NUM_RECORDS // PER_STEP)
        records = [f"r{(number + epoch) % NUM_RECORDS}" for number in range(NUM_RECORDS)]
        lines.append({"step": step + 1, "trained": records[place * PER_STEP : (place + 1) * PER_STEP], "lost": []})
    return lines


def flat(start: int, end: int, mib: float = 500.0) -> list[tuple[float, float]]:
    """Grows a little while it warms up, then wobbles."""
    return [(at, mib + min(20, at - start) + at % 3) for at in range(start, end)]


def seen() -> Seen:
    """Twenty good minutes with a learner that was killed once."""
    return Seen(
        step_times=[20.0 + at for at in range(MINUTES_20 - 20)],
        memory={
            ("learner", 10): flat(10, 400),
            ("learner", 20): flat(420, MINUTES_20, 620.0),
            ("server-0", 11): flat(5, 400),
            ("server-0", 21): flat(415, MINUTES_20),
            ("server-1", 12): flat(5, 30),
        },
        ended_at=MINUTES_20,
    )


def failed(observed: Seen, lines: list[dict[str, object]]) -> list[str]:
    return [each.measure for each in verdicts_on(observed, lines, NUM_RECORDS, PER_STEP) if not each.is_well]


def test_a_good_run_is_judged_well() -> None:
    assert failed(seen(), ledger(40)) == []
    measures = [each.measure for each in verdicts_on(seen(), ledger(40), NUM_RECORDS, PER_STEP)]
    assert measures.count("memory learner") == 2
    assert "memory server-1" not in measures


@pytest.mark.parametrize(
    "step_times",
    [[60.0], [], [20.0, 700.0, *range(701, 1200)], [float(at) for at in range(110, 1200)]],
    ids=["none in the last 19 minutes", "none at all", "none in the middle", "none at the start"],
)
def test_steps_that_stand_still_are_found_wherever_that_is(step_times: list[float]) -> None:
    assert failed(replace(seen(), step_times=step_times), ledger(40)) == ["longest pause"]


def test_a_pause_reaches_to_the_end_of_the_run() -> None:
    assert longest_pause([1.0, 2.0], ended_at=30.0) == 28.0


@pytest.mark.parametrize("number", [3, 11, 12])
def test_a_record_that_is_missing_is_found(number: int) -> None:
    lines = ledger(13)
    lines[number]["trained"] = lines[number]["trained"][:1]
    assert lost_or_doubled(lines, NUM_RECORDS, PER_STEP) == 1


@pytest.mark.parametrize("number", [0, 4, 12])
def test_a_record_that_is_learned_twice_is_found_and_what_it_displaced(number: int) -> None:
    lines = ledger(14)
    displaced = dict(lines[number], trained=[lines[number]["trained"][0]] * 2)
    added = dict(lines[number], trained=[*lines[number]["trained"], lines[number]["trained"][0]])
    assert lost_or_doubled([*lines[:number], displaced, *lines[number + 1 :]], NUM_RECORDS, PER_STEP) == 2
    assert lost_or_doubled([*lines[:number], added, *lines[number + 1 :]], NUM_RECORDS, PER_STEP) == 1


def test_a_step_that_is_missing_or_stands_twice_is_found() -> None:
    lines = ledger(9)
    assert lost_or_doubled([*lines[:4], *lines[5:]], NUM_RECORDS, PER_STEP) > 0
    assert lost_or_doubled([*lines[:4], lines[4], *lines[4:]], NUM_RECORDS, PER_STEP) > 0
    assert lost_or_doubled(lines, NUM_RECORDS, PER_STEP) == 0


def test_an_empty_ledger_and_a_wrong_exit_code_are_not_well() -> None:
    assert failed(seen(), []) == ["lost or doubled"]
    assert failed(replace(seen(), wrong_exits=[1]), ledger(40)) == ["wrong exit codes"]


def test_memory_that_grows_is_found_though_it_starts_again_from_little_in_the_next_process() -> None:
    memory = seen().memory
    memory["server-0", 11] = [(at, 400.0 + at / 4) for at in range(5, 400)]
    assert failed(replace(seen(), memory=memory), ledger(40)) == ["memory server-0"]
    merged = sorted(memory["server-0", 11] + memory["server-0", 21])
    assert growth(merged)[0] <= 1.05, "what merging both would have said"


@pytest.mark.parametrize("name", ["learner", "server-0"])
def test_a_process_that_never_lives_long_enough_is_not_taken_for_flat(name: str) -> None:
    memory = {key: series[:20] if key[0] == name else series for key, series in seen().memory.items()}
    assert failed(replace(seen(), memory=memory), ledger(40)) == [f"memory {name}"]
