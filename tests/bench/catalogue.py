"""What the catalogue costs at 10,000 versions: the first question, the next ones, a registration.

    PYTHONPATH=.:tests/support python tests/bench/catalogue.py

Makes a registry in memory and prints a Markdown table: medians of processor time, because other
work on the machine stretches the time on the wall. ``--models 1 --each 10000`` is one long history.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

from graphs import TENANT, Made, artifact_of

from appliance import lineage
from appliance.catalogue import Catalogue, Question, found_alike, search
from appliance.records import Lineage, Manifest, Parent

WORDS = ("churn", "fraud", "price", "demand", "risk", "claim", "route", "vision", "speech", "label")
COLUMNS = tuple(f"{word}_{number}" for word in WORDS for number in range(20))


def made_of(models: int, each: int) -> Made:
    """So many models and versions, with texts, tags, columns and parents."""
    chance = random.Random(7)
    made = Made()
    for at in range(models):
        name = f"{WORDS[at % 10]}-{at}"
        takes = chance.sample(COLUMNS, 20)
        for number in range(1, each + 1):
            parents = ()
            if number > 1:
                parents = (Parent(model_id=f"mod_acme_{name}", number=number - 1),)
            made.add(
                name,
                description=f"{name} for region {at % 50}, "
                + " ".join(chance.sample(WORDS, 6)) * 3,
                tags={"team": WORDS[at % 7], "tier": str(at % 3)},
                input_schema={"properties": {one: {"type": "number"} for one in takes}},
                output_schema={"properties": {f"score_{at % 9}": {"type": "number"}}},
                lineage=Lineage(data=(f"sha256:{chance.getrandbits(256):064x}",), code=f"{at:07x}"),
                parents=parents,
                files={f"f{n}": (f"sha256:{chance.getrandbits(256):064x}", 1000) for n in range(5)},
            )
    return made


def median_ms(work: Callable[[], object], times: int = 21) -> float:
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append((time.process_time() - started) * 1000)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--each", type=int, default=10)
    asked = parser.parse_args()
    made = made_of(asked.models, asked.each)
    snapshot = made.snapshot()
    catalogue = Catalogue()
    tracemalloc.start()
    catalogue.shelves(snapshot, TENANT.id)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    catalogue = Catalogue()
    started = time.process_time()
    catalogue.shelves(snapshot, TENANT.id)
    first_ms = (time.process_time() - started) * 1000

    def ask(**question: object) -> Callable[[], object]:
        wanted = Question(**question)  # type: ignore[arg-type]
        return lambda: search(catalogue.shelves(snapshot, TENANT.id), wanted)

    column = next(
        iter(made.tables.versions["mod_acme_churn-0"][0].manifest.input_schema["properties"])
    )
    digest = made.tables.versions["mod_acme_churn-0"][0].manifest.lineage.data[0]
    questions = {
        "a name": ask(text="churn-0"),
        "a word that every version has": ask(text="region"),
        "nothing (all models, first page)": ask(),
        "a column it takes": ask(takes=(column,)),
        "a tag and a word": ask(text="vision", tags=(("team", "risk"),)),
        "a data digest": ask(data=digest),
    }
    rows = [(f"search: {name}", median_ms(work)) for name, work in questions.items()]
    declared = Manifest(
        runtime="python3.11", entry="m:M", input_schema={"properties": {column: {}, "x": {}}}
    )
    files = artifact_of({f"f{n}": (f"sha256:{n:064x}", 1000) for n in range(5)})
    rows.append(
        (
            "what is alike, for a registration",
            median_ms(
                lambda: found_alike(catalogue.shelves(snapshot, TENANT.id), "new", declared, files)
            ),
        )
    )
    start = Parent(model_id="mod_acme_churn-0", number=1)
    rows.append(
        (
            f"lineage: {asked.each - 1} descendants",
            median_ms(
                lambda: lineage.walk(
                    snapshot, TENANT, start, direction="descendants", depth=10_000, limit=10_000,
                    may_see=lambda _name: True,
                )
            ),
        )
    )  # fmt: skip
    made.add("churn-0")
    newer = made.snapshot()
    started = time.process_time()
    catalogue.shelves(newer, TENANT.id)
    after_ms = (time.process_time() - started) * 1000
    print(f"{asked.models} models, {asked.models * asked.each} versions, {memory / 1e6:.0f} MB\n")
    print("| | ms |\n|---|---|")
    print(f"| the first question after a start: every card | {first_ms:.0f} |")
    print(f"| cards after one more version | {after_ms:.1f} |")
    for name, took in rows:
        print(f"| {name} | {took:.1f} |")


if __name__ == "__main__":
    main()
