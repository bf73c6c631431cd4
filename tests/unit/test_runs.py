"""Runs of serving runtimes: sequences cut out of passes, ranks put together, other tools' names.

The tensors are cut from what a real tool wrote (tests/fixtures/dumps) or counted out here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui import api
from aprtui.captures.assemble import Assembly, assemble
from aprtui.captures.dump import Array
from aprtui.captures.maps import load_map
from aprtui.captures.merge import Window, plan_of
from aprtui.captures.opening import is_dump, open_dump
from aprtui.captures.recognise import recognised
from aprtui.captures.sequences import Batch, CutSequence, sequences_of
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import open_trace
from aprtui.graph import Graph
from tests.unit.test_captures import DUMPS, SIZES, TOKENS, floats, graph, zipped

H, V = 256, 2048
SMALL: dict[str, Any] = {**SIZES, "num_hidden_layers": 1}


def cut(*batches: Batch, likeliest: int | None = None) -> list[CutSequence]:
    return sequences_of(batches, lambda run: likeliest)[0]


def flat(tokens: list[int], positions: list[int], lengths: list[int] | None = None) -> Batch:
    given = None if lengths is None else np.array(lengths)
    return Batch(tuple(tokens), np.array(positions), given)


def shown(found: list[CutSequence]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    rows = [one.rows(None) for one in found]
    return [(each.positions, each.passes) for each in rows]


# -- sequences -------------------------------------------------------------------------------------


def test_rows_of_two_sequences_at_neighbouring_positions_are_no_chunk() -> None:
    found = cut(
        flat([1, 2, 3, 4, 5], [0, 1, 0, 1, 2], [2, 3]),
        flat([6, 7, 9], [2, 3, 0], [3, 4]),  # in the other order of lengths; one row of padding
    )
    assert shown(found) == [((0, 1, 2), (0, 0, 1)), ((0, 1, 2, 3), (0, 0, 0, 1))]
    assert [one.tokens for one in found] == [(1, 2, 6), (3, 4, 5, 7)]


@pytest.mark.parametrize(("likeliest", "first"), [(7, 0), (8, 1)])
def test_two_that_could_go_on_are_told_by_the_token_that_was_fed(
    likeliest: int, first: int
) -> None:
    batches = [flat([1, 2, 3, 4], [0, 1, 0, 1], [2, 2]), flat([7, 8], [2, 2], [3, 3])]
    said = {(0, 0): likeliest, (0, 1): 15 - likeliest}
    found, _ = sequences_of(batches, lambda run: said.get((run.number, run.place)))
    assert found[0].tokens == (1, 2, (7, 8)[first])
    with pytest.raises(UsageError, match="could go on two sequences"):
        cut(*batches)


def test_positions_alone_cut_what_does_not_say_lengths() -> None:
    assert len(cut(flat([1, 2, 3, 4], [0, 1, 0, 1]))) == 2


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([flat([1, 2], [0, 1]), flat([3], [3])], "passes are missing, out of order"),
        ([flat([3], [2]), flat([1, 2], [0, 1])], "passes are out of order"),
        ([flat([1, 2], [0, 1], [5])], "do not end at position 4"),
        ([flat([1, 2], [0, 1, 2])], "2 token ids and 3 positions"),
        ([Batch((1, 2), None, np.array([1, 1]))], "not their positions"),
        ([Batch((1, 2, 3), None, None, (1, 3), np.array([1, 0, 1]))], "has holes: 0, 2"),
        ([Batch((1, 2), None, None, (2, 1)), Batch((1,), None, None, (1, 1))], "1 and 2 sequences"),
        ([Batch((1, 2), None, None, (2, 1), np.array([1, 0]))], "nothing but padding"),
        ([Batch((1, 2), np.array([4, 6]), None, (1, 2))], "passes are missing or out of order"),
    ],
)
def test_rows_that_make_no_sequence_are_one_sentence(batches: list[Batch], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        cut(*batches)
    assert "\n" not in str(error.value)


def test_a_left_padded_batch_without_positions_counts_its_columns() -> None:
    mask = np.array([1, 1, 1, 0, 1, 1])
    step = Batch((8, 9), None, None, (2, 1), np.array([1, 1]), np.array([[1, 1, 1], [0, 1, 1]]))
    found = cut(Batch((1, 2, 3, 0, 4, 5), None, None, (2, 3), mask), step)
    assert [one.tokens for one in found] == [(1, 2, 3, 8), (4, 5, 9)]
    assert found[1].rows(1) == Rows((1, 2, 3), (0, 0, 1), first_key=1, sequence=1)
    assert not found[1].rows(1).unseen  # what came before is masked


def test_what_an_earlier_pass_cached_was_seen_and_is_not_there() -> None:
    late = flat([1, 2], [5, 6], [7])
    assert "positions 0-4 are not in the dump" in cut(late)[0].rows(None).unseen
    step = Batch((1,), np.array([4]), None, (1, 1), np.array([1]), np.array([[0, 1, 1, 1]]))
    assert cut(step)[0].rows(None).first_key == 1


# -- ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "width", "ranks", "kind"),
    [
        ([Window(256)], 256, 1, "one"),
        ([Window(256)], 256, 2, "whole"),
        ([Window(256)], 128, 2, "parts"),
        ([Window(256, 8), Window(64, 2), Window(64, 2)], 192, 2, "parts"),
        (
            [Window(256, 8), Window(64, 2), Window(64, 2)],
            128,
            4,
            "parts",
        ),  # kv heads are held twice
        ([Window(256)], 100, 2, None),
        ([Window(256)], 64, 2, None),
    ],
)
def test_how_ranks_make_a_whole_follows_from_the_models_dimensions(
    windows: list[Window], width: int, ranks: int, kind: str | None
) -> None:
    found = plan_of(windows, width, ranks, logits=False)
    assert (None if found is None else found.kind) == kind


def test_a_vocabularys_padding_is_dropped() -> None:
    for width, ranks, padding in ((1056, 2, 64), (2112, 1, 64), (2112, 2, 64)):
        found = plan_of([Window(V)], width, ranks, logits=True)
        assert found is not None and found.padding == padding
    assert plan_of([Window(V)], 2112, 1, logits=False) is None
    assert plan_of([Window(V)], 4096, 1, logits=True) is None


def run_of(folder: Path, ranks: list[dict[str, Any]], passes: int = 1) -> Path:
    """A folder a rank as SGLang writes them, of one layer's tensors [rows, columns]."""
    for rank, tensors in enumerate(ranks):
        place = folder / f"TP{rank}_PP0_Rank{rank}_pid{rank}"
        place.mkdir(parents=True)
        for number in range(passes):
            ids = torch.arange(3) + 3 * number
            asked = {"input_ids": ids, "positions": ids, "seq_lens": torch.tensor([ids[-1] + 1])}
            named = {f"model.forward_batch_info.{name}": value for name, value in asked.items()}
            torch.save({**tensors, **named}, place / f"Pass{number:05}.pt")
    return folder


def assembled(path: Path, of: Graph, ranks: tuple[str, ...] = ()) -> Assembly:
    dump = open_dump(path, ranks)
    return assemble(dump, recognised(dump), of, None)


def values_of(path: Path, of: Graph) -> tuple[Assembly, dict[str, Array]]:
    found = assembled(path, of)
    return found, {str(key): value for key, value, _ in found.stages()}


def test_heads_that_are_too_few_are_held_by_several_ranks(tmp_path: Path) -> None:
    whole = torch.arange(3 * 384.0).reshape(3, 384)
    q, k, v = whole[:, :256], whole[:, 256:320], whole[:, 320:]
    parts = [
        torch.cat([q[:, 64 * r :][:, :64], *(each[:, r // 2 * 32 :][:, :32] for each in (k, v))], 1)
        for r in range(4)
    ]  # fmt: skip
    name = "model.layers.0.self_attn.qkv_proj"
    run_of(tmp_path / "a", [{name: part} for part in parts])
    one = graph(num_hidden_layers=1)
    found, values = values_of(tmp_path / "a", one)
    assert np.array_equal(values["layer-0/qkv_bias"], whole.numpy()) and not found.findings
    parts[1] = parts[1].clone()
    parts[1][2, 70] += 1  # the second copy of the first key head, in one row
    run_of(tmp_path / "b", [{name: part} for part in parts])
    found, _ = values_of(tmp_path / "b", one)
    assert len(found.findings) == 1 and "rank 1 in position 2 from" in found.findings[0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_copies_that_differ_are_named_by_rank_row_and_pass(tmp_path: Path, ranks: int) -> None:
    made = torch.randn(3, H, generator=torch.Generator().manual_seed(1))
    other = made.clone()
    other[1, 7] = torch.nextafter(other[1, 7], torch.tensor(9.0))  # by one unit
    name = "model.layers.0.post_attention_layernorm.0"
    copies = [made] * (ranks - 1) + [other] if ranks == 2 else [other, made, made]
    run_of(tmp_path, [{name: copy} for copy in copies], passes=2)
    found, values = values_of(tmp_path, graph(num_hidden_layers=1))
    (said,) = found.findings
    wrong = 1 if ranks == 2 else 0
    assert f"rank {wrong} in positions 1, 4 (passes 0-1)" in said
    assert np.array_equal(values["layer-0/ffn_norm"][:3], made.numpy())


def test_shares_of_a_sum_are_added_and_copies_are_not(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(2)
    shares = [torch.randn(3, H, generator=make).to(torch.bfloat16) for _ in range(2)]
    name = "model.layers.0.self_attn.o_proj"
    run_of(tmp_path, [{name: share} for share in shares])
    found, values = values_of(tmp_path, graph(num_hidden_layers=1))
    right = shares[0] + shares[1]  # in float32 and rounded once, as torch adds
    assert np.array_equal(values["layer-0/attn_out"], floats(right))
    assert any("attn_out: the ranks' shares" in note for note in found.notes)


def test_pipeline_ranks_hold_other_layers(tmp_path: Path) -> None:
    made = torch.randn(3, H)
    for pipeline in range(2):
        run = run_of(
            tmp_path / "made", [{f"model.layers.{pipeline}.mlp.down_proj": made + pipeline}]
        )
        next(run.iterdir()).rename(tmp_path / f"TP0_PP{pipeline}_Rank{pipeline}_pid7")
    (tmp_path / "made").rmdir()
    found, values = values_of(tmp_path, graph(num_hidden_layers=2))
    assert found.values.ranks == 1 and len(values) == 2
    assert np.array_equal(values["layer-1/ffn_out"], (made + 1).numpy())
    assert any("2 pipeline stages" in note for note in found.notes)


def test_ranks_that_make_no_whole_are_named(tmp_path: Path) -> None:
    part = {"model.layers.0.mlp.act_fn": torch.randn(3, 192)}
    one = graph(num_hidden_layers=1)
    run_of(tmp_path, [part] * 4)
    names = sorted(each.name for each in tmp_path.iterdir())
    whole = assembled(tmp_path, one)
    assert whole.values.ranks == 4
    for chosen, said in ((names[:2], "not all ranks are there"), (names[:1], "1/4 of it")):
        with pytest.raises(UsageError, match=said):
            assembled(tmp_path, one, tuple(chosen))
    with pytest.raises(UsageError, match="--ranks nobody"):
        assembled(tmp_path, one, ("nobody",))
    (tmp_path / names[1]).rename(tmp_path / "TP5_PP0_Rank5_pid1")
    with pytest.raises(AprtuiError, match="its ranks make no whole: TP 1, 4 is missing"):
        assembled(tmp_path, one)
    (tmp_path / "TP5_PP0_Rank5_pid1").rename(tmp_path / "TP0_PP0_Rank0_pid9")
    with pytest.raises(AprtuiError, match="are of the same rank: two runs"):
        assembled(tmp_path, one)


def test_ranks_of_other_passes_are_refused(tmp_path: Path) -> None:
    part = {"model.layers.0.mlp.act_fn": torch.randn(3, 384)}
    run_of(tmp_path, [part] * 2, passes=2)
    next(tmp_path.glob("TP1*/Pass00001.pt")).unlink()
    with pytest.raises(AprtuiError, match=r"not of one run: .* holds 1 passes, another 2"):
        assembled(tmp_path, graph(num_hidden_layers=1))


# -- other tools' names ----------------------------------------------------------------------------


HOOKED = dict(np.load(DUMPS / "hooks.npz"))
LAYER = "model.layers.0."


def same_as_hooked(path: Path, expected: dict[str, str], tokens: tuple[int, ...] | None) -> None:
    """The stages of a dump under other names are what transformers' hooks saw."""
    dump = open_dump(path)
    found = assemble(dump, recognised(dump), graph(), tokens)
    values = {str(key): value for key, value, _ in found.stages()}
    assert not found.contradictions and set(values) == set(expected)
    for key, name in expected.items():
        assert np.array_equal(values[key].reshape(-1), HOOKED[name].reshape(-1)), key


def test_sglangs_second_dumper(tmp_path: Path) -> None:
    files = {
        "attn_out": HOOKED[f"{LAYER}self_attn.output"][0],
        "ffn_swigl": HOOKED[f"{LAYER}mlp.down_proj.input"][0],
        "final_norm": HOOKED["model.norm.output"][0],
        "my_own": np.zeros(3, np.float32),
    }
    for index, (name, value) in enumerate([*files.items(), ("input_ids", np.array(TOKENS))]):
        layer = "___layer_id=0" if name in ("attn_out", "ffn_swigl") else ""
        file = tmp_path / f"step=0___rank=0___dump_index={index}___name={name}{layer}.pt"
        torch.save({"value": torch.from_numpy(value), "meta": {"name": name, "rank": 0}}, file)
    assert is_dump(tmp_path)
    expected = {
        "layer-0/attn_out": f"{LAYER}self_attn.output",
        "layer-0/ffn_swigl": f"{LAYER}mlp.down_proj.input",
        "final_norm": "model.norm.output",
    }
    same_as_hooked(tmp_path, expected, None)


def test_transformerlens_names(tmp_path: Path) -> None:
    parts = {part: HOOKED[f"{LAYER}self_attn.{part}_proj.output"] for part in "qkv"}
    heads = {part: value.reshape(1, 16, -1, 32) for part, value in parts.items()}
    cache = {
        **{f"blocks.0.attn.hook_{part}": torch.from_numpy(heads[part]) for part in "qkv"},
        "blocks.0.hook_mlp_out": torch.from_numpy(HOOKED[f"{LAYER}mlp.output"]),
        "blocks.0.mlp.hook_post": torch.from_numpy(HOOKED[f"{LAYER}mlp.down_proj.input"]),
        "blocks.0.hook_resid_post": torch.from_numpy(HOOKED[f"{LAYER}output"]),
    }  # fmt: skip
    torch.save(cache, tmp_path / "cache.pt")
    dump = open_dump(tmp_path / "cache.pt")
    found = assemble(dump, recognised(dump), graph(), TOKENS)
    values = {str(key): value for key, value, _ in found.stages()}
    joined = np.concatenate([parts[part][0] for part in "qkv"], axis=-1)
    assert np.array_equal(values.pop("layer-0/qkv_bias"), joined)
    assert set(values) == {"layer-0/ffn_out", "layer-0/ffn_swigl", "layer-0/post_ffn_residual"}
    right = HOOKED[f"{LAYER}output"][0]
    assert np.array_equal(values["layer-0/post_ffn_residual"], right)


def test_tensorrt_llms_debug_outputs_by_rank_and_iteration(tmp_path: Path) -> None:
    gate = HOOKED[f"{LAYER}mlp.down_proj.input"][0]
    for rank in range(2):
        place = tmp_path / "PP_0" / f"TP_{rank}" / "iteration_0"
        place.mkdir(parents=True)
        half = gate[:, 384 * rank :][:, :384]
        np.save(place / "transformer.layers.0.ffn_swigl.npy", half)
        np.save(place / "transformer.layers.0.mlp_output.npy", half)
        np.save(place / "input_ids.npy", np.array(TOKENS))
    same_as_hooked(tmp_path, {"layer-0/ffn_swigl": f"{LAYER}mlp.down_proj.input"}, None)


def test_torchlens_is_read_by_its_manifest_alone(tmp_path: Path) -> None:
    import json

    from safetensors.numpy import save_file

    folder = tmp_path / "x.tlspec"
    (folder / "blobs").mkdir(parents=True)
    made = [
        (None, "none", "input_1", np.array([TOKENS])),
        ("model.layers.0.self_attn:1", "view", "view_1", np.zeros((1, 16, 8, 32), np.float32)),
        ("model.layers.0.input_layernorm:1", "__mul__", "mul_1", np.zeros((1, 16, H), np.float32)),
        ("model.layers.0.input_layernorm:1", "__mul__", "mul_2", np.ones((1, 16, H), np.float32)),
    ]
    sites, tensors = [], []
    for number, (module, function, label, value) in enumerate(made):
        place = f"blobs/{number:010}.safetensors"
        save_file({"data": value}, folder / place)
        sites.append({"module_path": module, "function_path": function, "layer_label": label})
        tensors.append({"label": f"{label}:1", "relative_path": place})
    (folder / "manifest.json").write_text(json.dumps({"sites": sites, "tensors": tensors}))
    assert is_dump(folder) and is_dump(tmp_path)
    dump = open_dump(tmp_path)
    found = assemble(dump, recognised(dump), graph(), None)
    ((key, value, _),) = found.stages()
    assert str(key) == "layer-0/attn_norm" and (value == 1).all()
    tensors[0]["relative_path"] = "../../../etc/passwd"
    (folder / "manifest.json").write_text(json.dumps({"sites": sites, "tensors": tensors}))
    with pytest.raises(AprtuiError, match="lies outside blobs/"):
        open_dump(folder)


# -- nothing is written outside --------------------------------------------------------------------


def test_names_with_dots_write_nothing_outside(tmp_path: Path, qwen2: Path) -> None:
    inside = tmp_path / "here" / "trace"
    inside.parent.mkdir()
    ids = np.array([5, 6])
    zipped(
        tmp_path / "x.npz",
        {"../../0/ffn_gate": np.ones((2, 512), np.float32), "../x": np.ones(3), "ids": ids},
    )
    own = tmp_path / "own.toml"
    own.write_text(
        'recognise = ["../../{L}/*"]\ntokens = "ids"\n'
        '[[stage]]\nname = "ffn_gate"\nfrom = [{ names = "../../{L}/ffn_gate" }]\n'
    )
    done = api.import_trace(tmp_path / "x.npz", model=qwen2, map=str(own), output=inside)
    assert done.stages == 1
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert written == {
        "x.npz", "own.toml", "here", "here/trace", "here/trace/trace.json",
        "here/trace/events.jsonl", "here/trace/layer-0", "here/trace/layer-0/ffn_gate.bin",
    }  # fmt: skip


def test_every_new_map_can_be_read() -> None:
    for name in ("torchlens", "transformerlens", "sglang-dumper", "tensorrt-llm"):
        found = load_map(name)
        assert found.rules and found.title and found.recognise


def test_chunks_of_attention_are_counted_from_where_the_first_key_stands() -> None:
    from aprtui.engine.ops import visible
    from aprtui.graph.ops import Mask

    seen = visible(Mask(chunk=4), 0, 5, 5, torch.device("cpu"), start=6)  # positions 6 to 10
    right = [[k <= q and q // 4 == k // 4 for k in range(6, 11)] for q in range(6, 11)]
    assert seen.tolist() == right


def test_a_place_is_written_by_position_where_rows_begin_late(tmp_path: Path) -> None:
    from aprtui import CaptureWriter
    from aprtui.tui.stage_table import table_of

    rows = Rows((12, 13, 14), (0, 0, 1))
    with CaptureWriter(tmp_path, tokens=[1, 2, 3], engine={"name": "m"}, rows=rows) as capture:
        capture.put("attn_norm", np.arange(12.0).reshape(3, 4), layer=0)
        capture.put("lm_head", np.arange(8.0).reshape(2, 4), positions=[13, 14])
    records = {key.stage: record for key, record in open_trace(tmp_path).records.items()}
    table = table_of(records["attn_norm"], ("a", "b", "c"))
    assert [table.row_label(row) for row in range(3)] == ["12 p0 a", "13 p0 b", "14 p1 c"]
    assert table.index_of("13,2") == 6 and table.name_of(6) == "(13 p0, 2)"
    with pytest.raises(UsageError, match="position 2 is none of positions 12-14 in 2 passes"):
        table.index_of("2,2")
    logits = table_of(records["lm_head"], ("a", "b", "c"))
    assert [logits.row_label(row) for row in range(2)] == ["13 p0 b", "14 p1 c"]
