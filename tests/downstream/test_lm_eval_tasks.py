"""Artefacts asked by the real lm-eval: what is asked, what comes of it, and what is kept."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from qbench_tasks import grammar_items
from qbench_tasks.cloze import cloze, passages
from qbench_tasks.grammar import Words
from qbench_tasks.grammar_rules import ID, VOCAB, next_logprobs
from qbench_tasks.grammar_text import render, windows
from qbench_tasks.text import Text
from torch import Tensor, nn

from qbench.api.language_model import Question, Quiz
from qbench.artefact.export_folder import export_run
from qbench.cli.options import cli
from qbench.downstream import lm_eval_evaluation, lm_eval_tasks
from qbench.downstream.evaluate import evaluate_folder, evaluate_run
from qbench.errors import QbenchError, UsageError
from qbench.runs.attempts import Attempt
from qbench.runs.downstream_answers import read_answers, read_item_results, list_unanswered_tasks
from tests.language_runs import LanguageRuns, language_runs, load_problem

__all__ = ["language_runs"]


QUIZZES = grammar_items.quizzes()
TASK_FILE = """
task: pets
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "the {{noun}} {{prep}} lupi"
doc_to_choice: "{{answers}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm, aggregation: mean, higher_is_better: true}]
metadata: {version: 3}
"""


class Oracle(nn.Module):
    """The grammar itself as a model."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        rows = [[next_logprobs(row[: n + 1]) for n in range(len(row))] for row in tokens.tolist()]
        return torch.from_numpy(np.array(rows)).clamp(min=-50).float()


class Flat(Oracle):
    """Finds everything equally likely."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, len(VOCAB))


def few(name: str, count: int = 60) -> Quiz:
    kind = name.removeprefix("grammar_")
    return Quiz(
        QUIZZES[name].title,
        lambda: grammar_items.questions(kind, count),
        chance=QUIZZES[name].chance,
        ceiling=1.0,
    )


def put(questions: Sequence[Any], model: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    asked = lm_eval_tasks.load_tasks(["mine"], {"mine": Quiz("Mine", lambda: questions)})
    return lm_eval_evaluation.evaluate_task(asked[0], model, Words(64))


def write_task(folder: Path, nouns: Sequence[str] = ("gatta", "orsi", "cervo")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    docs = [
        {
            "noun": noun,
            "prep": "near",
            "answers": ["nata soon", "nati soon", "nato soon"],
            "right": n % 3,
        }
        for n, noun in enumerate(nouns)
    ]
    (folder / "pets.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (folder / "pets.yaml").write_text(TASK_FILE % (folder / "pets.jsonl"))
    return folder / "pets.yaml"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_tasks.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---- the grammar's questions ----


@pytest.mark.parametrize("name", QUIZZES)
def test_the_right_answer_is_the_only_one_that_the_grammar_allows(name: str) -> None:
    questions = QUIZZES[name].make()
    assert (
        len(questions)
        == grammar_items.ITEMS
        == len({q.context for q in questions if isinstance(q, Question)})
    )
    for question in questions:
        assert isinstance(question, Question)
        logp = next_logprobs([ID["<doc>"], *(ID[word] for word in question.context.split())])
        assert [math.isfinite(logp[ID[choice]]) for choice in question.choices] == [
            n == question.right for n in range(len(question.choices))
        ]
        assert len(question.context.split()) < grammar_items.CONTEXT and len(
            question.choices
        ) == round(1 / (QUIZZES[name].chance or 0))


@pytest.mark.parametrize("name", QUIZZES)
def test_a_perfect_model_has_the_ceiling_and_one_that_cannot_tell_has_chance(name: str) -> None:
    quiz = few(name)
    asked = lm_eval_tasks.load_tasks([name], {name: quiz})[0]
    perfect, _ = lm_eval_evaluation.evaluate_task(asked, Oracle(), Words(64))
    assert perfect["metrics"]["acc"]["value"] == quiz.ceiling == 1.0
    ties, _ = lm_eval_evaluation.evaluate_task(lm_eval_tasks.load_tasks([name], QUIZZES)[0], Flat(), Words(64))
    assert ties["metrics"]["acc"]["value"] == pytest.approx(quiz.chance, abs=0.06)


def test_the_questions_are_the_same_in_every_process() -> None:
    assert [lm_eval_tasks.load_tasks([name], QUIZZES)[0].sha256[:12] for name in QUIZZES] == PINNED


PINNED = ["2d0555de6c4f", "f0b2e9ab1d75", "0f34e6c53896"]
"""Whoever changes an item changes what is compared: raise the quiz's version and pin anew."""


# ---- asking ----


def test_numbers_are_the_means_of_the_kept_items(language_runs: LanguageRuns) -> None:
    runs = language_runs
    found = evaluate_run(runs.results, runs.int4, ["grammar_recall"], "cpu", force=True)
    entry, folder = found["tasks"]["grammar_recall"], runs.folder(runs.int4)
    lines = [json.loads(line) for line in (folder / entry["file"]).read_text().splitlines()]
    right = read_item_results(folder, entry)
    assert right is not None and len(right) == entry["items"] == 400
    metric = entry["metrics"]["acc"]
    assert metric["value"] == np.mean(right) and math.isclose(
        metric["stderr"], np.std(right, ddof=1) / 20
    )
    assert right == [int(np.argmax(line["nats"])) == line["target"] for line in lines]


def test_it_asks_the_artefact_and_not_the_network_that_was_trained(language_runs: LanguageRuns) -> None:
    runs = language_runs
    evaluate_run(runs.results, runs.int4, ["grammar_nesting"], "cpu", force=True)
    questions = QUIZZES["grammar_nesting"].make()
    lines = (
        (runs.folder(runs.int4) / "downstream" / "grammar_nesting.jsonl").read_text().splitlines()
    )
    for key, same in ((runs.int4, True), (runs.fp, False)):
        problem = load_problem(runs, key)
        question, kept = questions[3], json.loads(lines[3])
        assert isinstance(question, Question)
        tokens = [0, *(ID[word] for word in question.context.split())]
        with torch.no_grad():
            logp = torch.log_softmax(problem.model(torch.tensor([tokens]))[0, -1], -1)
        nats = [float(logp[ID[choice]]) for choice in question.choices]
        assert np.allclose(nats, kept["nats"], atol=1e-5) == same


def test_bits_per_byte_are_those_of_the_chain_rule() -> None:
    tokens, _ = windows(0, 0, 3, 100, "val")
    texts = [render(row[1:]) for row in tokens[:, : 90 + 1]]
    summary, lines = put(texts, model := Oracle())
    nats = []
    for text in texts:
        row = [0, *Words(64).encode(text)]
        first = (
            model(torch.tensor([row[:64]]))[0]
            .double()
            .log_softmax(-1)[torch.arange(64), torch.tensor(row[1:65])]
            .sum()
        )
        # The last window is as long as the model can see, too, so its beginning was seen before.
        rest = (
            model(torch.tensor([row[26:90]]))[0, -26:]
            .double()
            .log_softmax(-1)[torch.arange(26), torch.tensor(row[65:])]
            .sum()
        )
        nats.append(float(first + rest))
    sizes = [len(text.encode()) for text in texts]
    assert [line["nats"][0] for line in lines] == pytest.approx(nats, rel=1e-6)
    metric = summary["metrics"]["bits_per_byte"]
    assert (
        metric["value"] == pytest.approx(-sum(nats) / sum(sizes) / math.log(2))
        and metric["better"] == "lower"
    )
    jackknife = [
        sum(nats[:i] + nats[i + 1 :]) / sum(sizes[:i] + sizes[i + 1 :]) / math.log(2)
        for i in range(3)
    ]
    assert metric["stderr"] == pytest.approx(np.std(jackknife) * math.sqrt(2), rel=0.1)


def test_a_context_that_does_not_fit_loses_its_beginning_and_that_is_counted() -> None:
    long = " ".join(["the", "gatto", "nato", "now"] * 20)
    questions = [Question(context, ("the", "let")) for context in (long, "the gatto nato now")]
    assert put(questions, Flat())[0]["cut"] == 2, "two answers to one question"


def test_words_that_the_model_does_not_know_are_one_line() -> None:
    with pytest.raises(
        QbenchError,
        match=r"^downstream task mine: the grammar has 95 words, and 'capital' is none of them$",
    ):
        put([Question("the capital of France is", ("Paris", "London"))] * 2, Flat())


def test_generated_answers_stop_where_the_task_says(tmp_path: Path) -> None:
    config = (
        write_task(tmp_path / "t")
        .read_text()
        .replace("multiple_choice", "generate_until")
        .split("metric_list")[0]
    )
    config = config.replace(
        'doc_to_text: "the {{noun}} {{prep}} lupi"', 'doc_to_text: "let golf five ask golf"'
    ).replace('"{{right}}"', '"five"')
    config = "\n".join(line for line in config.splitlines() if "doc_to_choice" not in line)
    extra = 'generation_kwargs: {until: ["the", "let"], max_gen_toks: 6}\nmetric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n'
    (tmp_path / "t" / "pets.yaml").write_text(f"{config}\n{extra}")
    asked = lm_eval_tasks.load_tasks([str(tmp_path / "t" / "pets.yaml")], {})[0]
    summary, lines = lm_eval_evaluation.evaluate_task(asked, Oracle(), Words(64))
    assert all(
        line["answer"].split()[0] == "five" and "let" not in line["answer"] for line in lines
    )
    assert summary["metric"] == "exact_match"


# ---- what is found by name ----


def test_a_task_file_of_lm_evals_is_asked_alone_and_by_its_folder(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    runs, file = language_runs, write_task(tmp_path / "mine")
    found = evaluate_run(runs.results, runs.fp, [str(file)], "cpu")["tasks"]["pets"]
    again = evaluate_run(runs.results, runs.fp, [str(tmp_path / "mine")], "cpu", force=True)[
        "tasks"
    ]["pets"]
    assert (found["items"], found["version"], list(found["metrics"])) == (3, 3, ["acc", "acc_norm"])
    assert {**again, "asked_as": found["asked_as"]} == found
    attempt = Attempt(runs.folder(runs.fp))
    assert list_unanswered_tasks(attempt, [str(file), "pets", "grammar_recall"]) == ["grammar_recall"]


def test_the_hash_follows_the_documents_and_the_definition_and_not_the_place(
    tmp_path: Path,
) -> None:
    def sha(path: Path) -> str:
        return lm_eval_tasks.load_tasks([str(path)], {})[0].sha256

    one = sha(write_task(tmp_path / "a"))
    assert sha(write_task(tmp_path / "b")) == one
    assert sha(write_task(tmp_path / "c", ("gatta", "orsi", "cervi"))) != one
    path = write_task(tmp_path / "d")
    path.write_text(path.read_text().replace("lupi", "orsi"))
    assert sha(path) != one


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["grammar_recal"], "unknown downstream task 'grammar_recal'; did you mean grammar_recall"),
        (["no/such.yaml"], "no/such.yaml: no such task file or folder"),
        (
            [],
            "no downstream task is named; here are grammar_agreement, grammar_nesting, grammar_recall",
        ),
    ],
)
def test_a_wrong_name_is_one_line_before_anything_is_computed(
    language_runs: LanguageRuns, names: list[str], line: str
) -> None:
    runs = language_runs
    before = sorted(runs.folder(runs.fp).rglob("*"))
    with pytest.raises(UsageError, match=line) as error:
        evaluate_run(
            runs.results, runs.fp, ["grammar_nesting", *names] if names else [], "cpu", force=True
        )
    assert "\n" not in str(error.value) and sorted(runs.folder(runs.fp).rglob("*")) == before


@pytest.mark.slow
def test_names_of_the_hub_are_known_and_without_a_network_they_are_one_line(
    language_runs: LanguageRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = language_runs
    with pytest.raises(
        UsageError, match="unknown downstream task 'arc_eazy'; did you mean arc_easy"
    ):
        evaluate_run(runs.results, runs.fp, ["arc_eazy"], "cpu")
    monkeypatch.setattr(lm_eval_tasks.datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        QbenchError,
        match=r"^downstream task arc_easy: its data is not on this machine, and the hub cannot be reached",
    ):
        evaluate_run(runs.results, runs.fp, ["arc_easy"], "cpu")


# ---- what is kept ----


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_twice_is_the_same_bytes_alone_or_in_company(language_runs: LanguageRuns) -> None:
    runs, folder = language_runs, language_runs.folder(language_runs.int4_int8)
    evaluate_run(runs.results, runs.int4_int8, list(QUIZZES), "cpu", force=True)
    first = files(folder)
    # The number of threads now does not matter either: it is the number that the run was trained with.
    torch.set_num_threads(2)
    try:
        for name in reversed(list(QUIZZES)):
            evaluate_run(runs.results, runs.int4_int8, [name], "cpu", force=True)
    finally:
        torch.set_num_threads(1)
    assert files(folder) == first and {"downstream.json", "downstream/grammar_recall.jsonl"} < set(
        first
    )
    assert {
        entry["threads"] for entry in json.loads(first["downstream.json"])["tasks"].values()
    } == {1}


def test_what_is_answered_is_not_asked_again_unless_the_artefact_or_the_task_is_another(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    runs, told = language_runs, list[str]()
    path = write_task(tmp_path / "t")
    for _ in range(2):
        evaluate_run(runs.results, runs.fp, [str(path)], "cpu", report=told.append)
    write_task(tmp_path / "t", ("gatti", "orsi"))
    evaluate_run(runs.results, runs.fp, [str(path)], "cpu", report=told.append)
    assert told[-2:] == ["pets: answered before", "pets: 2 items"]
    folder = runs.folder(runs.fp)
    known = json.loads((folder / "downstream.json").read_text())
    (folder / "downstream.json").write_text(json.dumps({**known, "artefact_sha256": "of another"}))
    assert read_answers(Attempt(folder)) == {} and list_unanswered_tasks(Attempt(folder), ["pets"]) == ["pets"]
    evaluate_run(runs.results, runs.fp, [str(path)], "cpu", report=told.append)
    assert told[-1] == "pets: 2 items"


def test_a_run_without_its_artefact_or_with_another_is_one_line(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    shutil.copytree(language_runs.results, tmp_path / "r")
    runs = LanguageRuns(
        tmp_path / "r",
        language_runs.fp,
        language_runs.int4,
        language_runs.int4_int8,
        language_runs.digits,
    )
    weights = runs.folder(runs.fp) / "export" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(QbenchError, match="is not the artefact that was scored"):
        evaluate_run(runs.results, runs.fp, ["grammar_recall"], "cpu")
    shutil.rmtree(weights.parent)
    with pytest.raises(QbenchError, match="its artefact is gone"):
        evaluate_run(runs.results, runs.fp, ["grammar_recall"], "cpu")
    with pytest.raises(UsageError, match="task digits trains no language model"):
        evaluate_run(runs.results, runs.digits, ["grammar_recall"], "cpu")


def test_the_command_prints_a_table_and_leaves_generators_alone(language_runs: LanguageRuns) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    arguments = [
        "eval",
        language_runs.int4[:10],
        "--tasks",
        "grammar_recall",
        "--results",
        str(language_runs.results),
        "--device",
        "cpu",
        "--force",
    ]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None and done.stderr == "grammar_recall: 400 items\n"
    assert any(
        line.split()[:2] == ["grammar_recall", "acc"] and line.endswith("0.125   1        400")
        for line in done.stdout.splitlines()
    )
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    assert torch.equal(states[2], torch.get_rng_state())


def test_an_exported_folder_answers_as_its_run_does(language_runs: LanguageRuns, tmp_path: Path) -> None:
    pytest.importorskip(
        "transformers",
        reason="Hugging Face's transformers are not installed: pip install 'qbench[hf]'",
    )
    runs, names = language_runs, ["grammar_agreement", "grammar_recall"]
    export_run(runs.results, runs.int4, "hf", tmp_path / "hf")
    theirs = evaluate_folder(tmp_path / "hf", names, "cpu")["tasks"]
    ours = evaluate_run(runs.results, runs.int4, names, "cpu")["tasks"]
    for name in names:
        assert theirs[name]["sha256"] == ours[name]["sha256"]
        lines = [
            [
                json.loads(line)
                for line in (folder / "downstream" / f"{name}.jsonl").read_text().splitlines()
            ]
            for folder in (tmp_path / "hf", runs.folder(runs.int4))
        ]
        assert np.allclose(
            [line["nats"] for line in lines[0]], [line["nats"] for line in lines[1]], atol=3e-5
        )


# ---- questions about any text ----


def test_cloze_gives_nothing_away_by_length_and_little_by_frequency() -> None:
    words = [
        f"{'abcdefghij'[n % 10]}{'klmnopqr'[n % 8]}y{n % 7}{'x' * (n % 3)}" for n in range(600)
    ]
    found = [f"passage {n} speaks of {word}" for n, word in enumerate(words)]
    questions = cloze(found, 200)
    assert questions == cloze(found[::-1], 200) and len(questions) == 200
    for question in questions:
        n = int(question.context.split()[1])
        assert (
            question.choices[question.right] == words[n]
            and question.context == f"passage {n} speaks of"
        )
        assert (
            len(set(question.choices)) == 4
            and len({len(choice) for choice in question.choices}) == 1
        )
    assert 30 < sum(question.right == 0 for question in questions) < 70
    assert cloze(["one", "", "just two"], 10) == []


def test_a_quiz_that_its_text_is_too_short_for_is_one_line() -> None:
    quiz = Quiz("The last word of a passage", lambda: cloze(["just two"], 10))
    with pytest.raises(
        QbenchError,
        match="downstream task own_cloze: its text is too short to make a single item of",
    ):
        lm_eval_tasks.load_tasks(["own_cloze"], {"own_cloze": quiz})


def test_passages_are_whole_words_of_the_documents_and_fit_a_model_of_bytes() -> None:
    documents = ["word " * 60 + "end", "ünï " * 100, "x" * 500, "", "a (b) c = d\n word"]
    found = list(passages(documents))
    assert all(
        any(passage in text for text in documents) and len(passage.encode()) <= 120
        for passage in found
    )
    assert all(re.search(r"\S \w{3,}$", passage) for passage in found) and {
        passage[:4] for passage in found
    } == {"word", "ünï "}


@pytest.mark.slow
def test_the_task_text_asks_about_its_own_held_out_documents() -> None:
    task = Text()
    asked = lm_eval_tasks.load_tasks(["text_cloze", "text_bytes"], task.quizzes())
    assert [one.sha256 for one in asked] == [
        one.sha256
        for one in lm_eval_tasks.load_tasks(["text_cloze", "text_bytes"], Text(vocab=256).quizzes())
    ]
    problem = task.problem("xs", 0, 1, torch.device("cpu"))
    with torch.no_grad():
        problem.model.head.weight.zero_()
    assert problem.tokenizer is not None
    guessing, reading = (
        lm_eval_evaluation.evaluate_task(one, problem.model, problem.tokenizer)[0] for one in asked
    )
    assert (
        guessing["metrics"]["acc"]["value"] == pytest.approx(0.25, abs=0.07)
        and guessing["cut"] == 0
    )
    assert reading["metrics"]["bits_per_byte"]["value"] == pytest.approx(8.0), (
        "256 bytes, all alike"
    )
