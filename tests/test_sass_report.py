"""The report on the kernels' machine code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import sass_report

LISTING = """
.text._ZN8leakypar4cuda12_GLOBAL__N_119project_scan_kernelIfLi4EEEvNS_3RunIT_EE:
        /*0000*/                   LDGSTS.E.BYPASS.128.ZFILL [R1], [R2.64], P0 ;
        /*0010*/              @!P0 LDGSTS.E.ZFILL [R1], [R2.64], P0 ;
        /*0020*/                   LDSM.16.M88.4 R4, [R1] ;
        /*0030*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0040*/              @UP1 HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0050*/               @P3 STG.E.128 [R2.64], R4 ;
        /*0060*/                   STG.E [R2.64], R4 ;
.L_x_0:
        /*0070*/                   BRA `(.L_x_0) ;
.text.plain:
        /*0000*/                   EXIT ;
"""


def test_report_counts_what_the_disassembler_prints() -> None:
    project, plain = sass_report.parse(LISTING)
    assert [project.count(column) for column in sass_report.COLUMNS] == [2, 1, 2, 1, 0, 1]
    assert project.instructions.total() == 8
    assert plain == sass_report.KernelCode("plain", plain.instructions)
    assert dict(plain.instructions) == {"EXIT": 1}


def test_report_refuses_a_listing_it_does_not_understand() -> None:
    for listing in ("", LISTING.replace("EXIT", "exit")):
        with pytest.raises(ValueError, match="no instructions were understood"):
            sass_report.parse(listing)


def test_report_fails_where_a_claimed_instruction_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(sass_report, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(sass_report, "find_disassembler", lambda: Path("nvdisasm"))
    monkeypatch.setattr(sass_report, "demangle", lambda names: ["project_scan_kernel<float, 4>", "plain"])
    monkeypatch.setattr(sass_report, "disassemble", lambda *arguments: LISTING)
    assert sass_report.main(["kernels.cu"]) == 0
    without = LISTING.replace("HMMA", "FFMA")
    monkeypatch.setattr(sass_report, "disassemble", lambda *arguments: without)
    assert sass_report.main(["kernels.cu"]) == 1
    assert "error: project_scan_kernel<float, 4> has no HMMA" in capsys.readouterr().err
