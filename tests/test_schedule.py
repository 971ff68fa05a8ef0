"""The reading of machine code, and the claims that it is held to."""

from __future__ import annotations

import pytest

from tools import chip, machine_code, schedule
from tools.ptxas_report import KernelUse


def control(stall: int = 1, write: int = 7, waits: tuple[int, ...] = ()) -> int:
    """The upper half of an instruction, with operands' scoreboard 7: none."""
    return stall << 41 | write << 46 | 7 << 49 | sum(1 << 52 + each for each in waits)


def listing(*lines: str | tuple[str, int]) -> str:
    """What nvdisasm prints of a kernel: labels as they are, and pairs of an instruction and its upper half."""
    text, address = [".text._Z4scanPf:"], 0
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
            continue
        text.append(f"        /*{address:04x}*/    {line[0]} ;    /* 0x0000000000007918 */")
        text.append(f"                    /* 0x{line[1]:016x} */")
        address += 16
    return "\n".join(text)


def kernel(*lines: str | tuple[str, int]) -> machine_code.Kernel:
    """That listing, read."""
    (code,) = machine_code.parse(listing(*lines))
    return machine_code.Kernel("scan<float, 4>", "sm_90", code, KernelUse(code.mangled, "sm_90", 32, 0, 0, 0))


LOADS_ONE_BY_ONE = (
    (".L_x_0"),
    ("LDG.E.128 R4, [R2.64]", control(write=2)),
    ("FADD R8, R4, R8", control(stall=4, waits=(2,))),
    ("LDG.E.128 R4, [R2.64+0x10]", control(write=2)),
    ("FADD R8, R4, R8", control(stall=4, waits=(2,))),
    ("STG.E.128 [R6.64], R8", control(stall=2)),
    ("@P0 BRA `(.L_x_0)", control(stall=5)),
    ("EXIT", control(stall=5)),
)
COPIES_AHEAD = (
    (".L_x_0"),
    ("LDGSTS.E.BYPASS.128 [R1], [R2.64]", control(write=0)),
    ("LDGDEPBAR", control(write=0)),
    ("DEPBAR.LE SB0, 0xf", control()),
    ("LDS.128 R4, [R1]", control(write=1)),
    ("STG.E [R6.64], R4", control(waits=(1,))),
    ("@P0 BRA `(.L_x_0)", control(stall=5)),
    ("CALL.REL.NOINC `($__internal_0_$__cuda_sm20_rem_s64)", control(stall=5)),
    ("EXIT", control(stall=5)),
    "$__internal_0_$__cuda_sm20_rem_s64",
    ("RET.REL.NODEC R2 `(_Z4scanPf)", control(stall=5)),
)


def test_control_word_is_read_as_published() -> None:
    (code,) = machine_code.parse(listing(("@!P1 LDG.E.U16 R4, [R2.64]", control(9, 3, (0, 5)))))
    (load,) = code.instructions
    assert (load.predicate, load.name, load.opcode) == ("@!P1", "LDG.E.U16", "LDG")
    assert (load.stall, load.write_scoreboard, load.read_scoreboard, load.waits) == (9, 3, None, frozenset({0, 5}))


def test_listing_without_control_words_is_refused() -> None:
    with pytest.raises(ValueError, match="control word"):
        machine_code.parse(".text.k:\n        /*0000*/   EXIT ;\n        /*0010*/   EXIT ;\n")
    with pytest.raises(ValueError, match="no instructions"):
        machine_code.parse("nothing")


def test_loops_are_found_and_called_functions_are_not_in_them() -> None:
    code = kernel(*COPIES_AHEAD).code
    (loop,) = code.loops
    assert [each.opcode for each in loop.body] == ["LDGSTS", "LDGDEPBAR", "DEPBAR", "LDS", "STG", "BRA"]
    assert len(code.main) == len(code.instructions) - 1


def test_a_load_that_is_waited_for_at_once_is_alone_in_flight() -> None:
    assert schedule.MEASURES["in_flight"](kernel(*LOADS_ONE_BY_ONE)) == 1


def test_loads_that_others_follow_are_in_flight_with_them() -> None:
    two_ahead = kernel(
        ".L_x_0",
        ("FADD R8, R4, R8", control(stall=4, waits=(1,))),
        ("LDG.E.128 R4, [R2.64]", control(write=1)),
        ("FADD R8, R12, R8", control(stall=4, waits=(2,))),
        ("LDG.E.128 R12, [R2.64+0x10]", control(write=2)),
        ("STG.E.128 [R6.64], R8", control(stall=2)),
        ("@P0 BRA `(.L_x_0)", control(stall=5)),
        ("EXIT", control(stall=5)),
    )
    assert schedule.in_flight(two_ahead) == 2


def test_measures_of_a_ring_of_copies() -> None:
    values = {name: measure(kernel(*COPIES_AHEAD)) for name, measure in schedule.MEASURES.items()}
    assert values["in_flight"] == 16
    assert values["step_instructions"] == 6
    assert values["step_stalls"] == 10
    assert (values["stores_16"], values["stores_narrow"], values["divisions"]) == (0, 1, 1)
    assert (values["registers"], values["spills"]) == (32, 0)


def test_claims_are_compared_and_none_is_lost() -> None:
    about_scan = "// schedule scan<*, 4>: in_flight >= 8, stores_narrow = 0,\n//   divisions = 0\n"
    code = f"int x;\n{about_scan}// schedule gone<*>: spills = 0\n"
    claims = list(schedule.read_claims("scan.cu", code))
    assert [claim.measure for claim in claims] == ["in_flight", "stores_narrow", "divisions", "spills"]
    failed = list(schedule.failures([kernel(*LOADS_ONE_BY_ONE)], claims))
    assert failed == [
        "scan.cu: scan<float, 4> on sm_90: in_flight is 1, claimed >= 8",
        "scan.cu: no kernel is called gone<*>",
    ]
    assert list(schedule.failures([kernel(*COPIES_AHEAD)], [])) == ["nothing is claimed of scan<float, 4>"]


def test_a_claim_that_nothing_measures_is_an_error() -> None:
    with pytest.raises(ValueError, match="bounds none of"):
        list(schedule.read_claims("scan.cu", "// schedule scan<*>: speed >= 9\n"))


def clocks_a_pass(lines: tuple[str | tuple[str, int], ...]) -> float:
    (loop,) = kernel(*lines).code.loops
    short, long = (chip.clocks(chip.H100, loop.body, times, 4, 1, from_memory=True) for times in (32, 64))
    return (long - short) / 32


def test_simulated_loads_cost_their_latency_where_they_are_waited_for() -> None:
    assert clocks_a_pass(LOADS_ONE_BY_ONE) > 2 * chip.H100.memory_latency


def test_simulated_copies_run_ahead_of_the_loop_to_the_bandwidth() -> None:
    moved = 4 * 32 * (16 + 4) / chip.H100.memory_bytes
    assert clocks_a_pass(COPIES_AHEAD) == pytest.approx(moved, rel=0.02)
