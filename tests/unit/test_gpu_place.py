"""Who gets which GPU: tenants apart, budgets within one tenant, partitions, and refusals."""

from __future__ import annotations

import pytest

from appliance.records import Resources
from appliance.sandbox.gpu_place import Gpu, Places
from appliance.sandbox.spec import MIB


def whole(number: int, mib: int = 40_000) -> Gpu:
    return Gpu(id=f"GPU-{number}", vendor="nvidia", name="A100", index=str(number),
               memory_bytes=mib * MIB)  # fmt: skip


def part(number: int, mib: int = 10_000) -> Gpu:
    return Gpu(id=f"MIG-{number}", vendor="nvidia", name="A100 1g.10gb", kind="mig",
               index=f"0:{number}", parent="GPU-9", memory_bytes=mib * MIB)  # fmt: skip


def asks(gpus: int = 1, mib: int = 0) -> Resources:
    return Resources(gpus=gpus, gpu_memory_bytes=mib * MIB)


def test_a_sandbox_without_gpus_holds_none_and_is_never_refused():
    places = Places()
    assert places.refusal(Resources()) == ""
    hold = places.take("t", Resources())
    assert hold is not None
    assert hold.units == ()


def test_a_gpu_is_one_tenants_until_it_is_given_back():
    places = Places([whole(0), whole(1)])
    first, second = places.take("a", asks()), places.take("b", asks())
    assert first is not None
    assert second is not None
    assert set(first.units) | set(second.units) == {"GPU-0", "GPU-1"}
    assert places.take("c", asks()) is None
    assert places.take("a", asks()) is None
    places.give(first)
    places.give(first)
    third = places.take("c", asks())
    assert third is not None
    assert third.units == first.units
    assert places.take("a", asks()) is None


def test_one_tenants_budgets_share_a_gpu_while_their_sum_fits():
    places = Places([whole(0, 1000)])
    held = [places.take("a", asks(mib=400)) for _ in range(3)]
    assert [hold is not None for hold in held] == [True, True, False]
    assert places.allocated_bytes("GPU-0") == 800 * MIB
    assert places.take("a", asks(mib=200)) is not None


def test_another_tenant_never_shares_however_much_is_free():
    places = Places([whole(0, 1000)])
    assert places.take("a", asks(mib=1)) is not None
    assert places.take("b", asks(mib=1)) is None


def test_who_declares_no_budget_shares_with_nobody_of_its_own_tenant_either():
    places = Places([whole(0, 1000)])
    alone = places.take("a", asks())
    assert alone is not None
    assert places.allocated_bytes("GPU-0") == 1000 * MIB
    assert places.take("a", asks(mib=1)) is None
    places.give(alone)
    assert places.take("a", asks(mib=1)) is not None
    assert places.take("a", asks()) is None


def test_a_budget_goes_to_the_tightest_unit_and_packs_where_its_tenant_is():
    places = Places([whole(0), part(0), part(1, 20_000)])
    first = places.take("a", asks(mib=5_000))
    assert first is not None
    assert first.units == ("MIG-0",)
    second = places.take("a", asks(mib=5_000))
    assert second is not None
    assert second.units == ("MIG-0",)
    third = places.take("a", asks(mib=15_000))
    assert third is not None
    assert third.units == ("MIG-1",)


def test_without_a_budget_a_whole_gpu_comes_first():
    places = Places([part(0), whole(0)])
    hold = places.take("a", asks())
    assert hold is not None
    assert hold.units == ("GPU-0",)


def test_several_gpus_are_whole_ones_and_all_or_none():
    places = Places([whole(0), whole(1), part(0)])
    one = places.take("a", asks())
    assert places.take("b", asks(2)) is None
    assert places.allocated_bytes("GPU-1") == 0
    assert one is not None
    places.give(one)
    both = places.take("b", asks(2))
    assert both is not None
    assert set(both.units) == {"GPU-0", "GPU-1"}


@pytest.mark.parametrize(
    ("gpus", "resources", "said"),
    [
        ([], asks(), "has no GPU to give"),
        ([whole(0)], asks(2), "this machine has 1 x A100 (40000 MiB)."),
        ([part(0), part(1)], asks(2), "2 x A100 1g.10gb (10000 MiB) (partitions are given one"),
        ([whole(0), part(0)], asks(mib=50_000), "asks for 50000 MiB on each of 1; this machine"),
        ([whole(0), whole(1, 100)], asks(2, 200), "asks for 200 MiB on each of 2"),
    ],
)
def test_what_the_machine_can_never_give_is_refused_with_what_there_is(gpus, resources, said):
    assert said in Places(gpus).refusal(resources)


def test_a_size_that_nobody_tells_refuses_nothing_and_is_not_shared():
    places = Places([whole(0, 0)])
    assert places.refusal(asks(mib=99_000)) == ""
    assert places.take("a", asks(mib=1)) is not None
    assert places.take("a", asks(mib=1)) is None
