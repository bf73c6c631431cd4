"""Contracts: the public validator's verdicts, levels from evidence, and the JSON Schemas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.cli.main import main
from aprtui.contracts import evidence as evidence_module
from aprtui.contracts.evidence import digest, load_evidence
from aprtui.contracts.levels import standing
from aprtui.contracts.model import Level
from aprtui.contracts.validate import Verdict, validate
from aprtui.engine import events
from tests.support import SMALL

CONTRACTS = SMALL / "contracts"
VERDICTS: dict[str, Any] = json.loads((CONTRACTS / "verdicts.json").read_text())
VALID = (CONTRACTS / "valid-v1.yaml").read_text()
OWN = Path(__file__).resolve().parents[2] / "contracts"


def verdict_on(path: Path, text: str | bytes) -> Verdict:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return next(validate([path]))


def rules(verdict: Verdict) -> list[str]:
    return [finding.rule for finding in verdict.findings]


# --- validation, against the public tool's own verdicts ---------------------------------------


def test_every_fixture_has_a_recorded_verdict() -> None:
    assert {path.name for path in CONTRACTS.glob("*.yaml")} == set(VERDICTS)
    assert len(VERDICTS) > 50


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_verdict_is_the_public_validators(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(CONTRACTS / name)
    code = main(["contract", "validate", path, "--json"])
    said = json.loads(capsys.readouterr().out)[path]
    public = [one for one in said["findings"] if not one[1].startswith("OURS-")]
    assert sorted(public) == sorted(VERDICTS[name]["findings"])
    assert code == said["exit"] == VERDICTS[name]["exit"]


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("version: 1.0.0", "version: one", "OURS-VERSION"),
        ("binds_to: HDR-LEN", "binds_to: NO-SUCH", "OURS-BINDS-TO"),
        ("  test: python -m pytest tests/a.py -q\n", "", "OURS-TEST"),
        ("test: python -m pytest tests/a.py", "test: no-such-program tests/a.py", "OURS-TEST"),
        ("test: python -m", "evidence: hearsay\n  test: python -m", "OURS-EVIDENCE"),
        ("test: python -m", "level: DISCHARGED\n  test: python -m", "OURS-LEVEL"),
    ],
)
def test_our_own_rules_warn(tmp_path: Path, old: str, new: str, rule: str) -> None:
    before = verdict_on(tmp_path / "x-v1.yaml", VALID)
    after = verdict_on(tmp_path / "x-v1.yaml", VALID.replace(old, new, 1))
    assert rules(after).count(rule) == rules(before).count(rule) + 1
    assert after.errors == 0


def test_exact_property_is_bound_as_its_id_is(tmp_path: Path) -> None:
    text = VALID.replace("binds_to: HDR-RT", "binds_to: read(write(x)) = x")
    assert "OURS-BINDS-TO" not in rules(verdict_on(tmp_path / "x-v1.yaml", text))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("- id: HDR-LEN\n  type: invariant", "- id: HDR-LEN\n  requires: P", "SCHEMA-014"),
        ("type: roundtrip", "type: roundtrip\n  na_owner: core", "SCHEMA-023"),
        ("- id: F-002", "- id: F-001", "SCHEMA-007"),
        ("total_obligations: 2", "total_obligations: two", "PARSE"),
        ("total_obligations: 2", "total_obligations: 2\nensures:\n- {id: a, wrong: b}", "PARSE"),
        ("total_obligations: 2", "total_obligations: 2\ncoq_spec: {}", "PARSE"),
        ("binds_to: HDR-LEN", "binds_to: HDR-LEN\n  obligation: HDR-LEN", "PARSE"),
        ("type: roundtrip", "type: roundtrip\n  lean: {status: proved}", "PARSE"),
        ("domain: n in 0 .. 4294967295", "domain: 1.5e3", "PARSE"),
        ("    - size >= 12", "    - 12", "PARSE"),
        ("rule: round trip", "rule: round trip\n  equation: a\n  equation: b", "SCHEMA-020"),
    ],
)
def test_table_of_rules(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert old in VALID
    verdict = verdict_on(tmp_path / "x-v1.yaml", VALID.replace(old, new, 1))
    assert rule in rules(verdict)
    assert verdict.errors == 1


def test_wrong_count_is_an_error_in_a_kernel(tmp_path: Path) -> None:
    text = VALID.replace("kind: schema", "kind: kernel").replace("obligations: 2", "obligations: 5")
    found = verdict_on(tmp_path / "x-v1.yaml", text).findings
    assert ("ERROR", "VS-COUNT-001") in [(one.severity, one.rule) for one in found]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"a: " + b"[" * 100_000,
        b"a: &a [*a]",
        b"a: *nowhere",
        b"metadata: {version: '1', description: x, references: [\x00]}",
        b"? [a]\n: b",
        ("r: &r [" + "x," * 5000 + "]\nmetadata: {version: '1', description: d, kind: schema}\n"
         "simd_dispatch: {}\nqa_gate: &q {checks: *r}\nproof_obligations: ["
         + "{lean: {theorem: t, depends_on: *r}}," * 1000 + "]").encode(),
    ],
    ids=["utf16", "deep", "recursive", "unknown-alias", "control", "list-as-key", "repetition"],
)  # fmt: skip
def test_hostile_yaml_is_a_parse_error(tmp_path: Path, body: bytes) -> None:
    assert rules(verdict_on(tmp_path / "x-v1.yaml", body)) == ["PARSE"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(VALID) - 1), st.binary(max_size=6), st.integers(0, 8))
def test_any_mutation_gets_a_verdict(
    tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes, drop: int
) -> None:
    body = VALID.encode()
    path = tmp_path_factory.getbasetemp() / "mutated-v1.yaml"
    verdict = verdict_on(path, body[:at] + put + body[at + drop :])
    assert all(one.rule for one in verdict.findings)


def test_words_that_only_yaml_1_1_takes_for_booleans_are_text(tmp_path: Path) -> None:
    text = VALID.replace("codomain: bytes", "codomain: yes")
    assert "PARSE" not in rules(verdict_on(tmp_path / "x-v1.yaml", text))


def test_file_without_metadata_is_refused_by_name_and_noted_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "binding.yaml"
    path.parent.mkdir()
    path.write_text("bindings:\n  - contract: a\n")
    assert rules(next(validate([path]))) == ["PARSE"]
    (noted,) = validate([tmp_path])
    assert noted.findings == ()
    assert "binding registry" in noted.note


def test_nothing_to_validate_is_exit_code_2(tmp_path: Path) -> None:
    assert main(["contract", "validate", str(tmp_path)]) == 2
    assert main(["contract", "validate", str(tmp_path / "absent.yaml")]) == 2
    assert main(["contract", "status", str(tmp_path)]) == 2
    assert main(["contract", "run", str(tmp_path / "absent")]) == 2


def test_names_from_files_are_shown_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x-v1.yaml"
    path.write_text(VALID.replace("id: F-002", 'id: "F\\e[2J"').replace("bytes equal", "''"))
    assert main(["contract", "validate", str(path)]) == 1
    said = capsys.readouterr().out
    assert "SCHEMA-008" in said and "\x1b" not in said
    assert said.splitlines()[-1].startswith("1 error(s), ")


# --- evidence and levels ----------------------------------------------------------------------

CONTRACT = """\
metadata: {{kind: schema, version: "1.0.0", description: d, references: [r]}}
proof_obligations: [{{id: A, property: p}}]
falsification_tests:
- id: T-1
  rule: p
  prediction: q
  test: {test}
  if_fails: f
  binds_to: A
{more}
"""


@dataclasses.dataclass
class Project:
    """A folder with one contract whose test runs ``check.py``."""

    root: Path

    @property
    def contract(self) -> Path:
        return self.root / "contracts" / "x-v1.yaml"

    def write(self, source: str, more: str = "", test: str = "python check.py") -> None:
        (self.root / "check.py").write_text(source)
        self.contract.write_text(CONTRACT.format(test=test, more=more))

    def run(self, *options: str) -> int:
        return main(["contract", "run", str(self.contract.parent), *options])

    def status(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["contract", "status", str(self.contract.parent), "--json"]) == 0
        row: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
        return row


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "contracts").mkdir()
    return Project(tmp_path)


def test_level_rises_and_falls_with_the_test(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("raise SystemExit(0)")
    assert project.status(capsys)["level"] == "PROPOSED"
    assert project.run() == 0
    assert project.status(capsys)["level"] == "PARTIAL_ALGORITHM_LEVEL"
    project.write("raise SystemExit(3)")
    assert project.status(capsys)["reason"] == "stale: check.py has changed since"
    assert project.run() == 1
    row = project.status(capsys)
    assert (row["level"], row["reason"]) == ("PROPOSED", "failed: exit code 3")
    assert row["evidence"]["exit"] == 3


def test_evidence_is_stale_once_the_contract_changes(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("pass")
    assert project.run() == 0
    project.contract.write_text(project.contract.read_text() + "# edited\n")
    row = project.status(capsys)
    assert (row["level"], row["reason"]) == ("PROPOSED", "stale: the contract has changed since")


@pytest.mark.parametrize(
    ("more", "level"),
    [
        ("  evidence: [unit]", "PARTIAL_ALGORITHM_LEVEL"),
        ("  evidence: [independent]\n  against: check.py", "PARTIAL_ALGORITHM_LEVEL"),
        ("  evidence: [end-to-end]\n  model: absent.gguf", "PARTIAL_ALGORITHM_LEVEL"),
        ("  evidence: end-to-end\n  model: model.gguf", "FUNCTIONAL"),
        ("  evidence: [end-to-end, independent]\n  model: model.gguf", "FUNCTIONAL"),
        (
            "  evidence: [end-to-end, independent]\n  model: model.gguf\n  against: numbers",
            "DISCHARGED",
        ),
    ],
)
def test_level_is_what_was_recorded(
    project: Project, capsys: pytest.CaptureFixture[str], more: str, level: str
) -> None:
    (project.root / "model.gguf").write_bytes(b"weights")
    (project.root / "numbers").mkdir()
    (project.root / "numbers" / "a.bin").write_bytes(b"1")
    project.write("pass", more)
    assert project.run() == 0
    assert project.status(capsys)["level"] == level


def test_the_holes_of_a_terabyte_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = set()
    for place, held in ((1 << 35, b"abc"), (1 << 35, b"abd"), (1 << 36, b"abc"), (0, b"")):
        with (tmp_path / "sparse").open("wb") as stream:
            stream.truncate(1 << 40)
            stream.seek(place)
            stream.write(held)
        told.add(digest(tmp_path / "sparse"))
    assert len(told) == 4 and None not in told
    monkeypatch.setattr(evidence_module, "_READ_WHOLE", 0)
    (tmp_path / "whole").write_bytes(b"abc" * 999_999)
    assert digest(tmp_path / "whole") == f"sha256:{sha256(b'abc' * 999_999).hexdigest()}"


def test_evidence_says_what_the_run_really_wrote(project: Project) -> None:
    project.write(
        "import pathlib, tempfile\n"
        "pathlib.Path(tempfile.gettempdir(), 'out.bin').write_bytes(b'abc')\n"
        "print('\\x1b[2J seen')\n"
    )
    assert project.run() == 0
    evidence = load_evidence(project.contract, "T-1")
    assert evidence is not None
    assert evidence.written["bytes"] == 3
    # sha256 of b"abc": FIPS 180-2, appendix B.1
    assert evidence.written["largest"] == [
        {
            "path": "out.bin",
            "bytes": 3,
            "digest": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }
    ]
    assert evidence.versions["python"] and evidence.device and evidence.outcomes is None
    assert "seen" in evidence.output_tail and "\x1b" not in evidence.output_tail


@pytest.mark.parametrize(
    ("source", "passed", "reason"),
    [
        ("def test_a(): pass", True, "its unit tests pass"),
        ("import pytest\ndef test_a(): pytest.skip('why')", False, "shows nothing: 1 skipped"),
        ("x = 1", False, "failed: exit code 5"),
    ],
)
def test_pytest_shows_something_only_if_a_test_passes_and_none_is_skipped(
    project: Project,
    capsys: pytest.CaptureFixture[str],
    source: str,
    passed: bool,
    reason: str,
) -> None:
    project.write(source, test="python -m pytest check.py -q -p no:cacheprovider")
    assert project.run() == (0 if passed else 1)
    assert project.status(capsys)["reason"] == reason


def test_command_is_run_without_a_shell(project: Project) -> None:
    project.write("import sys; assert sys.argv[1] == ';'", test="python check.py ; touch made")
    assert project.run() == 0
    assert not (project.root / "made").exists()


def test_test_that_does_not_end_is_stopped_and_fails(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("import threading; threading.Event().wait()")
    assert project.run("--timeout", "0.5") == 1
    assert project.status(capsys)["reason"] == "failed: it did not end by itself"


def test_program_that_is_not_there_is_a_failure(project: Project) -> None:
    project.write("", test="no-such-program-anywhere")
    assert project.run() == 1


def test_only_runs_the_one_named(project: Project) -> None:
    project.write("pass")
    assert project.run("--only", "T-2") == 2
    assert project.run("--only", "T-1") == 0


def test_id_that_is_a_path_is_refused(project: Project) -> None:
    project.write("pass")
    project.contract.write_text(project.contract.read_text().replace("T-1", "../../T-1"))
    assert project.run() == 2
    assert not (project.root / "T-1.json").exists()


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"schema": "aprtui-evidence-v1"}', "[" * 9999])
def test_damaged_evidence_shows_nothing(
    project: Project, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    project.write("pass")
    assert project.run() == 0
    (project.contract.parent / "evidence" / "x-v1" / "T-1.json").write_text(body)
    row = project.status(capsys)
    assert row["level"] == "PROPOSED" and "is not evidence" in row["reason"]


def test_typed_level_agrees_with_the_evidence_or_is_found(project: Project) -> None:
    project.write("pass", "  level: PARTIAL_ALGORITHM_LEVEL")
    assert "OURS-LEVEL" in rules(next(validate([project.contract])))
    assert project.run() == 0
    assert "OURS-LEVEL" not in rules(next(validate([project.contract])))


def test_no_evidence_is_a_proposal() -> None:
    assert standing(None, "sha256:0", Path())[0] is Level.PROPOSED
    assert [level.rank for level in Level] == [0, 1, 2, 3]


# --- our own contracts and schemas ------------------------------------------------------------


def test_own_contracts_validate() -> None:
    verdicts = list(validate([OWN]))
    assert len(verdicts) >= 4
    for verdict in verdicts:
        assert [one for one in verdict.findings if one.rule != "OURS-TEST"] == []


def test_all_eleven_public_ids_are_there() -> None:
    text = (OWN / "apr-cli-trace-save-tensor-v1.yaml").read_text()
    for number in range(1, 12):
        assert text.count(f"id: FALSIFY-APR-TRACE-SAVE-{number:03}\n") == 1


def schema(name: str) -> jsonschema.Draft202012Validator:
    read = json.loads((OWN / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(read)
    return jsonschema.Draft202012Validator(read)


def sample_events() -> Iterator[events.Event]:
    yield events.Planned(
        "out", "m.gguf", "qwen2", 4, (1, 2), ("a", "b"), ("embedding",), (0, 1), 8, 96, 10**9,
        2_000_000, 9_000_000, "cpu", "a processor", "float32", ("a note",),
    )  # fmt: skip
    yield events.Started(4242)
    yield events.StageWritten(0, "embedding", "layer-0/embedding.bin", 20, 1, 8, 20, 0.5, 1.0, 0, 0)
    yield events.StageWritten(
        None, "lm_head", "lm_head.bin", 20, 8, 8, 99, 0.5, "NaN", 2, 0, 1, 2,
        (2,), ("vocab",), "last",
    )  # fmt: skip
    yield events.StageCompared(0, "ffn_out", "differs", 0.25, "rel_l2 0.25 > 1e-3", True)
    yield events.StageCompared(None, "lm_head", "unreadable", None, "cut short", False)
    yield events.Replay(0, "ffn_out", "computes wrongly")
    yield events.Replay(None, None, "no stage computes wrongly")
    yield events.PassDone(1, 3, "decode", 9, 1, 7, " the", 0.25)
    yield events.CardSeen("cuda:0", 10**9, 8 * 10**9, 97, 310.5, None)
    yield events.CardSeen("cuda:1", 0, 16_000_000_000, None, None, None)
    yield events.Log("warning", "the tokenizer adds no BOS")
    token = events.TopToken(7, " the", 12.5, 0.25)
    yield events.Finished("out", 8, 96, 1.5, 10**8, 0, (token.to_json(),), ("lm_head",))
    yield events.Stopped(3, "out")
    yield events.Failed("out of memory", "use fewer tokens", 4)


def test_every_event_keeps_the_schema() -> None:
    validator = schema("events")
    samples = list(sample_events())
    declared = {kind for kind in events.Event.__subclasses__() if kind is not events.TopToken}
    assert {type(event) for event in samples} == declared
    for event in samples:
        sent = json.loads(event.line())
        validator.validate(sent)
        for key in sent:
            less = {name: value for name, value in sent.items() if name != key}
            assert not validator.is_valid(less), f"{event.event} without {key}"
        assert not validator.is_valid({**sent, "surprise": 1})


def sample_manifest() -> dict[str, Any]:
    stats = dict.fromkeys(("min", "max", "mean", "std", "rms"), 0.5)
    return {
        "schema": "aprtui-trace-v1",
        "created": "2026-01-02T03:04:05Z",
        "model": {
            "path": "m.gguf",
            "format": "gguf",
            "format_version": "3",
            "size_bytes": 2132576,
            "digest": "sha256:" + "0" * 64,
            "architecture": "qwen2",
            "config": {
                "architecture": "qwen2",
                "num_layers": 4,
                "hidden_size": 256,
                "vocab_size": 1000,
                "rope_divisors": [],
                "sliding_window": None,
            },
            "types": {"q": ["Q4_K", "Q6_K"]},
        },
        "tokens": {"ids": [1], "text": ["a"]},
        "prompt": None,
        "selection": {"stages": ["lm_head"], "layers": [0], "logits": "last"},
        "engine": {
            "name": "aprtui",
            "version": "0.1.0",
            "device": "cpu",
            "device_name": "a processor",
            "dtype": "float32",
            "torch": "2.9.0",
            "threads": 2,
            "deterministic": True,
            "tf32": False,
        },
        "rope_layout": "halves",
        "stages": [
            {
                "stage": "lm_head",
                "layer": None,
                "path": "lm_head.bin",
                "shape": [1000],
                "axes": ["vocab"],
                "positions": "last",
                "bytes": 4012,
                "stats": {**stats, "max": "Infinity", "zeros": 0, "nan": 0, "inf": 1},
                "sha256": None,
            }
        ],
        "absent": [{"stage": "q_norm", "reason": "the family has no QK norm"}],
        "notes": [],
        "elapsed_s": 0.5,
        "peak_memory_bytes": 10**8,
        "peak_device_bytes": 0,
    }


def test_manifest_schema_takes_a_manifest_and_nothing_less() -> None:
    validator = schema("manifest")
    manifest = json.loads(json.dumps(sample_manifest()))
    validator.validate(manifest)
    for key in manifest:
        less = {name: value for name, value in manifest.items() if name != key}
        assert not validator.is_valid(less), f"without {key}"
    for wrong in ({"created": "today"}, {"tokens": {"ids": [-1], "text": ["a"]}}, {"more": 1}):
        assert not validator.is_valid({**manifest, **wrong})
    manifest["stages"][0]["path"] = "../lm_head.bin"
    assert not validator.is_valid(manifest)
