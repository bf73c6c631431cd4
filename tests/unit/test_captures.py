"""Other tools' dumps become traces exactly; what cannot be trusted is refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui.captures.assemble import Assembly, assemble
from aprtui.captures.dump import Array
from aprtui.captures.maps import CONVENTIONS, load_map
from aprtui.captures.opening import is_dump, open_dump
from aprtui.captures.recognise import recognised
from aprtui.captures.torch_zip import read_torch
from aprtui.cli.main import main
from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph import Graph
from aprtui.text import quoted
from tests.graphs import graph_of
from tests.support import FIXTURES, SMALL, needs_fixtures

DUMPS = SMALL / "dumps"
TOKENS = (783, 646, 292, 500, 506, 418, 269, 258, 344, 503, 679, 556, 274, 11, 457, 302)
SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


def graph(**changed: Any) -> Graph:
    return graph_of("qwen2", {**SIZES, **changed})


def imported(
    path: Path, tokens: tuple[int, ...] | None = None
) -> tuple[Assembly, dict[str, Array]]:
    dump = open_dump(path)
    found = assemble(dump, recognised(dump), graph(), tokens)
    return found, {str(key): value for key, value, _ in found.stages()}


def refusal(path: Path, tokens: tuple[int, ...] | None = None) -> str:
    with pytest.raises(AprtuiError) as error:
        imported(path, tokens)
    assert "\n" not in str(error.value)
    return str(error.value)


def floats(value: Any) -> Array:
    found: Array = value.float().numpy()
    return found


# -- each tool's dump, against the tool's own library ----------------------------------------------


@pytest.mark.parametrize(
    ("name", "convention", "dtype", "stages"),
    [
        ("hooks.npz", "transformers-hooks", "bfloat16", 12),
        ("debugger", "transformers-debugger", "float16", 11),
        ("msprobe", "msprobe", "bfloat16", 11),
        ("mlx.npz", "mlx", "float16", 11),
        ("vllm", "vllm", "bfloat16", 22),
        ("sglang", "sglang", "bfloat16", 16),
        ("onnxruntime.npz", "onnxruntime", "float32", 11),
        ("openvino.npz", "openvino", "float32", 12),
    ],
)
def test_a_dump_is_recognised_and_every_stage_has_the_models_shape(
    name: str, convention: str, dtype: str, stages: int
) -> None:
    found, values = imported(
        DUMPS / name, TOKENS if convention in ("onnxruntime", "openvino") else None
    )
    count = len(found.sequence.tokens)
    assert (found.convention.name, found.dtype, len(values)) == (convention, dtype, stages)
    assert not found.contradictions and found.sequence.tokens[: len(TOKENS)] == TOKENS
    for key in found.ways:
        shapes = [found.graph[key].shape(count, logits) for logits in ("last", "all")]
        some = found.graph[key].last and len(found.sequence.runs) > 1  # the rows that it chose by
        assert values[str(key)].shape in shapes or (some and values[str(key)].ndim == 2)


def test_vllms_queries_are_the_attentions_arguments_not_the_shared_rotary_modules() -> None:
    passes = [torch.load(DUMPS / "vllm" / f"pass{each}.pt", weights_only=True) for each in (0, 1)]
    found, values = imported(DUMPS / "vllm")
    layer = "model.layers.5."
    stacked = torch.cat([one[f"{layer}self_attn.attn:in0"] for one in passes])
    assert np.array_equal(values["layer-5/q_post_rope"], floats(stacked).reshape(17, 8, 32))
    gate_up = floats(torch.cat([one[f"{layer}mlp.gate_up_proj.0"] for one in passes]))
    assert np.array_equal(values["layer-5/ffn_gate"], gate_up[:, :768])
    assert np.array_equal(values["layer-5/ffn_up"], gate_up[:, 768:])
    assert any("rotary_emb" in note and "not trusted" in note for note in found.notes)


def test_vllms_residual_is_the_next_norms_second_result_and_its_first_norm_is_no_tuple() -> None:
    first = torch.load(DUMPS / "vllm" / "pass0.pt", weights_only=True)
    values = imported(DUMPS / "vllm")[1]
    after = floats(first["model.norm.1"])
    assert np.array_equal(values["layer-5/post_ffn_residual"][:16], after)
    norm = floats(first["model.layers.0.input_layernorm"])
    assert np.array_equal(values["layer-0/attn_norm"][:16], norm)


def test_the_recipe_for_vllm_names_outputs_by_their_place(tmp_path: Path) -> None:
    """``X:out0`` and ``X:out1``, as docs/recipes.md saves them, are what our dump calls ``X`` and
    ``X.1``."""
    files = sorted((DUMPS / "vllm").glob("*.pt"))
    for file in files:
        named: dict[str, Any] = {}
        for name, value in torch.load(file).items():
            module, dot, place = name.rpartition(".")
            own = ":" not in name and name not in ("positions", "seq_lens", "input_ids")
            several = own and dot and place.isdecimal() and f"{module}.0" in torch.load(file)
            new = f"{module}:out{place}" if several else f"{name}:out0"
            named[new if own else name] = value
        torch.save(named, tmp_path / file.name)
    assert files
    _, ours = imported(DUMPS / "vllm")
    _, recipes = imported(tmp_path)
    assert recipes.keys() == ours.keys()
    assert all(np.array_equal(recipes[key], ours[key]) for key in ours)


def test_sglangs_logits_lie_one_file_late_and_its_lm_head_is_the_embedding() -> None:
    late = torch.load(DUMPS / "sglang" / "Pass00003.pt", weights_only=True)
    found, values = imported(DUMPS / "sglang")
    assert [len(run.rows) for run in found.sequence.runs] == [16, 1, 1] and len(
        found.sequence.tokens
    ) == 18
    assert np.array_equal(values["lm_head"][-1:], floats(late["logits_processor"]))
    assert values["lm_head"].shape == (3, 2048)


def test_mlx_turns_q_first_and_k_second_with_heads_before_tokens() -> None:
    whole = np.load(DUMPS / "mlx.npz")
    found, values = imported(DUMPS / "mlx.npz")
    rope = "model.layers.0.self_attn.rope.output"
    assert np.array_equal(values["layer-0/q_post_rope"], whole[rope][0].transpose(1, 0, 2))
    assert np.array_equal(values["layer-0/k_post_rope"], whole[f"{rope}#1"][0].transpose(1, 0, 2))
    assert found.checked >= 3


def test_the_debuggers_layer_output_is_the_next_layers_input() -> None:
    from safetensors.numpy import load_file

    name = "Qwen2ForCausalLM.model.layers.1_inputs_args_0.safetensors"
    values = imported(DUMPS / "debugger")[1]
    expected = load_file(DUMPS / "debugger" / name)["data"][0]
    assert np.array_equal(values["layer-0/post_ffn_residual"], expected)


def test_bfloat16_in_float32_is_found_out_and_said() -> None:
    found, values = imported(DUMPS / "hooks.npz")
    whole = np.load(DUMPS / "hooks.npz")
    parts = [whole[f"model.layers.0.self_attn.{part}_proj.output"][0] for part in "qkv"]
    assert np.array_equal(values["layer-0/qkv_bias"], np.concatenate(parts, axis=-1))
    assert any("taken as bfloat16" in note for note in found.notes)


@needs_fixtures
@pytest.mark.parametrize(
    ("dump", "model", "stages"),
    [
        ("hf-hooks/f32-sdpa.npz", "pycode-5m", 40),
        ("mlx/f32.npz", "pycode-5m", 43),
        ("ort/fp32.npz", "pycode-5m", 58),
    ],
)
def test_a_float32_dump_is_cleared_by_bisect(
    tmp_path: Path, dump: str, model: str, stages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source, weights = FIXTURES / "dumps" / dump, str(FIXTURES / "models" / model)
    words = ["import-trace", str(source), "--model", weights, "-o", str(tmp_path / "t"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == stages
    assert len(open_trace(tmp_path / "t").records) == stages
    main(["bisect", str(tmp_path / "t"), "--model", weights, "--layers", "0"])
    assert "No culprit" in capsys.readouterr().out


# -- contradictions and what is not one prompt's ---------------------------------------------------


def changed_hooks(tmp_path: Path, **changes: Array | None) -> Path:
    whole = dict(np.load(DUMPS / "hooks.npz"))
    for name, value in changes.items():
        name = name.replace("__", ".")
        whole.pop(name, None)
        if value is not None:
            whole[name] = value
    np.savez(tmp_path / "x.npz", **whole)
    return tmp_path / "x.npz"


def test_two_readings_that_differ_are_left_out_and_said(tmp_path: Path) -> None:
    name = "model__layers__0__mlp__output"
    other = np.load(DUMPS / "hooks.npz")["model.layers.0.mlp.output"].copy()
    other[0, 3, 5] += 1
    found, values = imported(changed_hooks(tmp_path, **{name: other}))
    assert "layer-0/ffn_out" not in values
    assert len(found.contradictions) == 1 and "by up to 1" in found.contradictions[0]


def test_a_dump_of_another_model_is_refused_before_it_is_read() -> None:
    dump = open_dump(DUMPS / "hooks.npz")
    for other in (graph(intermediate_size=512), graph(num_attention_heads=4, head_dim=32)):
        with pytest.raises(UsageError, match="another model"):
            assemble(dump, recognised(dump), other, None)
    vllm = open_dump(DUMPS / "vllm")
    with pytest.raises(UsageError, match=r"it has layer 5, the model has layers 0\.\.3"):
        assemble(vllm, recognised(vllm), graph(num_hidden_layers=4), None)


def test_a_batch_of_several_sequences_is_refused(tmp_path: Path) -> None:
    ids = np.zeros((3, 16), np.float32)
    path = changed_hooks(tmp_path, model__embed_tokens__input=ids)
    assert "a batch of 3 sequences" in refusal(path)


def test_token_ids_are_asked_for_where_nothing_holds_them(tmp_path: Path) -> None:
    assert "--tokens" in refusal(DUMPS / "onnxruntime.npz")
    assert "not on [1, 2]" in refusal(DUMPS / "hooks.npz", (1, 2))


def test_passes_that_do_not_go_on_are_refused(tmp_path: Path) -> None:
    for name in ("Pass00000.pt", "Pass00002.pt", "Pass00003.pt"):
        (tmp_path / name).write_bytes((DUMPS / "sglang" / name).read_bytes())
    assert "passes are missing, out of order, or padded" in refusal(tmp_path)


def test_several_folders_of_tensors_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.zeros(3))
    assert "2 folders of tensors: one, two; the name one tells no rank" in refusal(tmp_path)


# -- maps ------------------------------------------------------------------------------------------


def zipped(path: Path, arrays: dict[str, Array]) -> None:
    """An .npz whose names are whatever a tool chose."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            held = io.BytesIO()
            np.save(held, values)
            archive.writestr(f"{name}.npy", held.getvalue())


def test_a_map_that_fits_nothing_and_names_that_no_map_knows(tmp_path: Path) -> None:
    zipped(tmp_path / "x.npz", {"../../etc/passwd": np.zeros(3), "b": np.zeros(3)})
    assert "no map knows its names: ../../etc/passwd" in refusal(tmp_path / "x.npz")
    dump = open_dump(DUMPS / "hooks.npz")
    with pytest.raises(UsageError, match="the map vllm fits nothing"):
        assemble(dump, load_map("vllm"), graph(), None)


def test_a_map_that_fits_twice_is_refused(tmp_path: Path) -> None:
    whole = dict(np.load(DUMPS / "onnxruntime.npz"))
    name = "|model|layers.0|mlp|down_proj|MatMul|output_0"
    zipped(tmp_path / "x.npz", {**whole, name.replace("MatMul", "MatMulNBits"): whole[name]})
    assert "the map fits twice" in refusal(tmp_path / "x.npz", TOKENS)


def test_a_persons_own_map(tmp_path: Path) -> None:
    values = np.arange(2 * 768, dtype=np.float32).reshape(2, 768)
    zipped(tmp_path / "x.npz", {"blk.3.gate": values, "ids": np.array([5, 6])})
    own = tmp_path / "own.toml"
    own.write_text(
        'engine = "mine"\nrecognise = ["blk.{L}.gate"]\ntokens = "ids"\n'
        '[[stage]]\nname = "ffn_gate"\nfrom = [{ names = "blk.{L}.gate" }]\n'
    )
    found = assemble(open_dump(tmp_path / "x.npz"), load_map(str(own)), graph(), None)
    ((key, value, _),) = found.stages()
    assert key == StageKey(3, "ffn_gate") and np.array_equal(value, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recognise = [", "not TOML"),
        ("recognize = []", "did you mean recognise"),
        ('recognise = ["a"]\n[[stage]]\nname = "ffn_gaet"\nfrom = []', "did you mean ffn_gate"),
        ('recognise = ["a"]', "at least one"),
        ('recognise = ["a"]\n[[stage]]\nname = "ffn_up"\nfrom = [{ take = "a[" }]', "MODULE"),
    ],
)
def test_what_is_no_map_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(BadFileError, match=r"m\.toml") as error:
        load_map(str(tmp_path / "m.toml"))
    assert said in str(error.value)


def test_every_map_of_ours_can_be_read() -> None:
    for name in CONVENTIONS:
        assert load_map(name).rules and load_map(name).title


# -- containers that cannot be trusted -------------------------------------------------------------


class Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/never",)


def saved(tmp_path: Path, value: Any) -> Path:
    torch.save(value, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_torchs_zip_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value: dict[str, Any] = OrderedDict(
        a=base.t(), b=[base[:, 2:4].to(torch.bfloat16)[::2], (base[1], {"c": base.half()})],
        d=torch.tensor([True, False]), e=torch.arange(3), n=None, text="x", number=3, real=1.5,
        p=torch.nn.Parameter(base[:2]), huge=1 << 40, flag=True,
    )  # fmt: skip
    members, single = read_torch(saved(tmp_path, value), "x")
    assert not single
    assert list(members) == ["a", "b.0", "b.1.0", "b.1.1.c", "d", "e", "p"]
    expected = [
        value["a"], value["b"][0], base[1], base.half(), value["d"], value["e"], base[:2],
    ]  # fmt: skip
    for member, tensor in zip(members.values(), expected, strict=True):
        assert np.array_equal(member.read(), tensor.float().numpy())


def test_a_pickle_that_would_call_something_is_named_and_not_run(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"would call posix.system: refused, nothing was run"):
        read_torch(saved(tmp_path, {"a": Calls()}), "x")
    for value in (torch.device("cpu"), {1, 2}, b"bytes", np.zeros(2), torch.float16):
        with pytest.raises(BadFileError):
            read_torch(saved(tmp_path, {"a": value}), "x")


def repickled(tmp_path: Path, raw: bytes) -> Path:
    path = tmp_path / "y.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y/data.pkl", raw)
    return path


@pytest.mark.parametrize(
    "raw",
    [
        b"", b".", b"\x80\x02.", b"(((.", b"\x80\x02]q\x00h\x00a.", b"\x80\x02}K\x01Q.",
        b"\x80\x02(K\x01K\x02l.", b"cos\nsystem\n(S'true'\ntR.", pickle.dumps([1] * 9)[:-3],
        b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_one_sentence_or_holds_nothing(tmp_path: Path, raw: bytes) -> None:
    try:
        assert read_torch(repickled(tmp_path, raw), "x")[0] == {}
    except BadFileError as error:
        assert "\n" not in str(error)


def test_a_dump_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for name in ("vllm/pass1.pt", "mlx.npz"):
        whole = (DUMPS / name).read_bytes()
        cut = tmp_path / Path(name).name
        for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
            cut.write_bytes(whole[:size])
            with pytest.raises(BadFileError):
                open_dump(cut)


def test_arrays_of_objects_and_lying_headers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", a=np.array([{}], dtype=object))
    assert "pickled objects" in refusal(tmp_path / "o.npz")
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        held, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 10)}
    )
    (tmp_path / "h.npy").write_bytes(held.getvalue())
    assert "0 are there" in refusal(tmp_path / "h.npy")


def test_a_tensor_of_over_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(1 << 30)
    member = read_torch(saved(tmp_path, {"a": wide}), "x")[0]["a"]
    with pytest.raises(BadFileError, match=r"tensor a has 4\.\d+ GB"):
        member.read()


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    assert "a fifo" in refusal(tmp_path)


def test_dumps_given_to_other_commands_name_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("debugger", "vllm", "hooks.npz"):
        for words in ([], ["bisect", "--model", "m"], ["diff"]):
            path = str(DUMPS / name)
            given = [*words, path] if "diff" not in words else [*words, path, path]
            assert main(given) in (2, 3)
            model = "m" if "--model" in words else "MODEL"
            assert f"aprtui import-trace {quoted(path)} --model {model}" in capsys.readouterr().err
    assert is_dump(DUMPS / "msprobe") and not is_dump(SMALL)  # a folder above dumps is none itself
    assert not is_dump(SMALL / "models") and not is_dump(SMALL / "captures")
