"""Each generator with the scripted teacher: what it asks, what it keeps, what it rejects and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generating.workbench import SEEDS, FunctionClient, generate, last, seed, words
from tunesmith.errors import DataError, RecipeError
from tunesmith.generating import GENERATORS
from tunesmith.generating.constraints import message_like, rows_schema
from tunesmith.generating.estimate import estimate, max_requests
from tunesmith.generating.evolve import reply_fault
from tunesmith.generating.personas import attributes, draw_persona
from tunesmith.generating.prompt_files import load_prompt
from tunesmith.generating.question_response import without_repetition
from tunesmith.generating.terms import Stamp, Terms
from tunesmith.protocols import Price
from tunesmith.recipe import Generate
from tunesmith.types import Conversation, Message, Task, TeacherRequest

PROMPTS = (
    "three_step", "label_first", "question_response", "dialogue", "maths", "evolve", "personas", "back_translate",
    "translate", "documents", "repair", "topic_tree", "magpie",
)  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_file_has_the_same_sections_and_slots_in_both_languages(name: str) -> None:
    english, chinese = load_prompt(name, "en"), load_prompt(name, "zh")
    assert english.slots == chinese.slots
    assert english.sections.keys() == chinese.sections.keys()
    for section in english.sections:
        assert english.sections[section] != chinese.sections[section] or english.sections[section].startswith("$")
        full = english.fill(section, {slot: f"<{slot}>" for slot in english.slots})
        assert "$" not in full


def rows(reason: str, *pairs: tuple[str, Any]) -> str:
    del reason
    return "\n".join(json.dumps({"input": a, "output": b}) for a, b in pairs)


# three steps


def three_step_script() -> list[dict[str, Any]]:
    return [
        {"match": "more, one per line", "text": "1. Tell whether a review is good or bad.\n2. Name a tool for a job."},
        {"match": "Instruction: Tell whether", "text": "Yes"},
        {"match": "Instruction: Name a tool", "text": "No, it is open."},
        {
            "match": "asks for one of a few labels",
            "text": '{"label": "good", "input": "Loved it from start to finish."}\n'
            '{"label": "bad", "input": "A waste of two long hours."}\n'
            '{"label": "good", "input": "So so."}\n{"label": "bad", "input": "So so."}',
        },
        {"match": "Write one case", "text": '{"input": "Hanging up a heavy mirror", "output": "A masonry drill."}'},
    ]


def test_three_step_writes_labels_before_inputs_and_drops_contradictions(tmp_path: Path) -> None:
    found = generate("three_step", three_step_script(), tmp_path, rows_per_request=2, num_seeds_shown=8)
    assert [(row.messages[0].content, row.reply) for row in found.kept] == [
        ("Tell whether a review is good or bad.\n\nLoved it from start to finish.", "good"),
        ("Tell whether a review is good or bad.\n\nA waste of two long hours.", "bad"),
        ("Name a tool for a job.\n\nHanging up a heavy mirror", "A masonry drill."),
    ]
    assert [row.metadata["is_classification"] for row in found.kept] == [True, True, False]
    assert found.reasons == ["contradiction", "contradiction"]
    asked = [last(request) for request in found.asked]
    assert len(asked) == 5
    assert "How do I patch a bicycle tyre?" in asked[0]
    assert [request.sampling.temperature for request in found.asked] == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_cases_beyond_those_that_were_asked_for_are_rejected_and_not_lost(tmp_path: Path) -> None:
    script = three_step_script()
    script[-1]["text"] += '\n{"input": "Cutting a pipe", "output": "A hacksaw."}'
    found = generate("three_step", script, tmp_path, rows_per_request=2, num_seeds_shown=8)
    assert found.reasons == ["contradiction", "contradiction", "surplus"]
    assert "A hacksaw." in found.rejected[2].raw


def test_three_step_shows_one_kept_instruction_in_four_from_the_second_round_on(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        if "more, one per line" in last(request):
            return "1. Explain " + words(request, 6)
        if "classification" in last(request):
            return "no"
        return json.dumps({"input": "", "output": words(request, 5)})

    found = generate("three_step", answer, tmp_path, num_rows=12, rows_per_request=1, num_seeds_shown=4)
    listed = [last(request) for request in found.asked if "more, one per line" in last(request)]
    assert listed[0].count("Explain") == 0
    assert any("Explain" in text for text in listed[1:])
    assert all(text.count("Explain") <= 1 for text in listed)


# questions and responses


def test_questions_are_written_apart_edited_and_answered_apart(tmp_path: Path) -> None:
    script = [{"match": "new questions", "text": "1. Why is the sea salty?\n2. Who invented the zip fastener?"}]
    found = generate("questions", script, tmp_path, num_rows=2, rows_per_request=2)
    assert [[turn.role for turn in row.messages] for row in found.kept] == [["user"], ["user"]]
    edited = tmp_path / "edited.jsonl"
    edited.write_text('{"question": "Why is the Dead Sea salty?"}\n{"oops": 1}\n"Who invented the zip?"\n')
    script = [
        {
            "match": "Dead Sea",
            "text": "Water leaves it only as vapour. The salt stays. Water leaves it only as vapour.",
        },
        {"match": "zip", "text": "Whitcomb Judson and Gideon Sundback."},
    ]
    found = generate("responses", script, tmp_path, num_rows=10, files={"edited.jsonl": edited})
    assert [row.reply for row in found.kept] == [
        "Water leaves it only as vapour. The salt stays.",
        "Whitcomb Judson and Gideon Sundback.",
    ]
    assert [row.metadata["question_from"] for row in found.kept] == ["edited.jsonl:1", "edited.jsonl:3"]
    assert [(row.reason, row.where) for row in found.rejected] == [("bad_row", "edited.jsonl:2")]
    assert {request.sampling.temperature for request in found.asked} == {0.0}


def test_question_response_does_both_and_the_seeds_take_turns(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return f"1. What is {words(request, 4)}?" if "new questions" in last(request) else "It is " + words(request, 5)

    found = generate("question_response", answer, tmp_path, num_rows=6, rows_per_request=1)
    assert len(found.kept) == 6
    shown = [last(request) for request in found.asked if "new questions" in last(request)]
    assert all(sum(one.messages[0].content in text for text in shown) == 2 for one in SEEDS)
    assert {row.split for row in found.kept} == {"train"}


def test_sentences_said_twice_are_said_once_and_numbers_survive() -> None:
    assert without_repetition("It costs 3.50 today. It costs 3.50 today. Yes. Yes.") == "It costs 3.50 today. Yes. Yes."
    assert (
        without_repetition("今天的天气非常非常不错啊。今天的天气非常非常不错啊。好。")
        == "今天的天气非常非常不错啊。好。"
    )
    assert without_repetition("```\nx = 1 + 1 + 1 + 1\nx = 1 + 1 + 1 + 1\n```").count("x =") == 2


def test_responses_without_a_file_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="works from files") as caught:
        generate("responses", [{"text": "x"}], tmp_path)
    assert caught.value.where == "recipe.generate.files"


# dialogue


def test_a_dialogue_in_one_answer_is_kept_turn_by_turn(tmp_path: Path) -> None:
    script = [
        {"text": "User: My chain fell off\nAssistant: Which bike?\nUser: A tandem\nAssistant: Turn it upside down."},
        {"text": "User: Only this\nAssistant: One exchange."},
        {"text": "I would rather not."},
        {"text": "User: Is glue fine?\nAssistant: For tubes.\nUser: And tyres?\nAssistant: Sew them first."},
    ]
    found = generate("dialogue", script, tmp_path, num_rows=2, seeds=[seed("chain?", "yes", "Be kind.")])
    assert [[turn.role for turn in row.messages] for row in found.kept] == [["system", *["user", "assistant"] * 2]] * 2
    assert found.kept[0].messages[3].content == "A tandem"
    assert found.reasons == ["too_short", "unreadable"]
    assert "chain?" in last(found.asked[0])
    assert "Be kind." in last(found.asked[0])


def talk(request: TeacherRequest) -> str:
    system = request.messages[0].content
    if "You play a person" in system:
        return "[END]" if last(request).count("User: ") == 2 else "User: tell me about " + words(request, 4)
    return "Well: " + words(request, 4)


def test_self_chat_answers_from_the_real_history_and_ends_when_the_person_is_content(tmp_path: Path) -> None:
    found = generate("dialogue", talk, tmp_path, num_rows=4, dialogue_form="self_chat", max_rounds=5)
    lengths = [len(row.messages) for row in found.kept]
    assert max(lengths) == 4
    assert all(not turn.content.startswith("User:") for row in found.kept for turn in row.messages)
    longest = max(found.asked, key=lambda request: len(request.messages))
    assert [turn.role for turn in longest.messages] == ["user", "assistant", "user"]


def test_two_teachers_alternate(tmp_path: Path) -> None:
    person = FunctionClient(talk)
    found = generate(
        "dialogue", talk, tmp_path, num_rows=3, dialogue_form="two_teachers", max_rounds=2, user_client=person,
        user_teacher={"kind": "scripted", "script": "t.jsonl"},
    )  # fmt: skip
    assert len(found.kept) == 3
    assert all("You play a person" in request.messages[0].content for request in person.asked)
    assert all("You play a person" not in request.messages[0].content for request in found.asked)
    assert len(person.asked) == 6


def test_a_dialogue_needs_a_seed_or_a_task(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="from the task alone"):
        generate("dialogue", talk, tmp_path, seeds=[])


# maths


def problem(question: str, solution: str, expression: str, answer: str) -> str:
    return json.dumps({"question": question, "solution": solution, "expression": expression, "answer": answer})


def test_maths_runs_the_arithmetic_and_names_each_fault(tmp_path: Path) -> None:
    text = "\n".join(
        [
            problem("Six bags of four pears, two eaten?", "6 * 4 = 24\n24 - 2 = 22\n22 pears are left.", "6*4-2", "22"),
            problem("Half of nine?", "9 / 2 = 4.5\nThe answer is 4.5.", "9 / 2", "4.50"),
            problem("Wrong answer?", "6 * 4 = 24", "6*4-2", "24"),
            problem("Wrong step?", "6 * 4 = 25\nso 22", "6*4-2", "22"),
            problem("Wrong end?", "6 * 4 = 24", "6*4-2", "22"),
            problem("Words?", "two", "six * four", "24"),
            problem("Range?", "5", "5", "4 to 6"),
        ]
    )
    found = generate("maths", [{"text": text}], tmp_path, num_rows=2, rows_per_request=7, seeds=[])
    assert [row.metadata["answer"] for row in found.kept] == ["22", "4.50"]
    assert found.reasons == ["wrong_answer", "wrong_step", "wrong_solution", "no_arithmetic", "no_answer"]
    assert "6*4-2 = 22, the answer says 24" in found.rejected[0].detail
    assert "6 * 4 = 25" in found.rejected[1].detail


def test_maths_by_majority_keeps_what_enough_answers_agree_on(tmp_path: Path) -> None:
    votes = {
        "pears": ["7", "9", "7", "7", "x"],
        "plums": ["1", "2", "3", "4", "4"],
        "figs": ["no", "no", "no", "?", ""],
    }
    seen: dict[str, int] = {}

    def answer(request: TeacherRequest) -> str:
        if "one per line" in last(request):
            return "1. How many pears are there?\n2. What do plums cost?\n3. And the figs then?"
        fruit = next(name for name in votes if name in last(request))
        seen[fruit] = seen.get(fruit, 0) + 1
        return f"step {seen[fruit]}\nAnswer: {votes[fruit][seen[fruit] - 1]}"

    found = generate(
        "maths", answer, tmp_path, num_rows=1, rows_per_request=3, answer_check="majority", num_votes=5, seeds=[]
    )
    assert [(row.reply, row.metadata["agreement"]) for row in found.kept] == [("step 1\nAnswer: 7", 0.6)]
    assert found.reasons == ["no_majority", "no_majority"]
    assert "2 of 5 answers agree (4 x2" in found.rejected[0].detail
    assert len({request.key("t") for request in found.asked}) == 16


# evolve


def evolve_script(changed: str, verdict: str, reply: str) -> list[dict[str, Any]]:
    return [
        {"match": "Does both|Do both", "text": verdict},
        {"match": "harder version|brand-new", "text": changed},
        {"match": ".", "text": reply},
    ]


GOOD = "Patch a tubeless tyre in the rain with three tools at most."


@pytest.mark.parametrize(
    ("changed", "verdict", "reply", "reason"),
    [
        (GOOD, "Yes, the same.", "Dry it first.", "no_gain"),
        (GOOD, "Hm.", "Dry it first.", "no_verdict"),
        ("Here is the #Rewritten Prompt#: " + GOOD, "No", "Dry it first.", "copied_prompt"),
        (GOOD, "No", "Sorry, I do not know that.", "sorry"),
        (GOOD, "No", "It is so, and that is it.", "says_nothing"),
        ("", "No", "Dry it first.", "empty"),
    ],
)
def test_the_four_rules_of_elimination(tmp_path: Path, changed: str, verdict: str, reply: str, reason: str) -> None:
    def answer(request: TeacherRequest) -> str:
        text = last(request)
        if "Do both" in text:
            return verdict
        if "harder version" in text or "brand-new" in text:
            return changed if "patch a bicycle" in text else GOOD + words(request, 3)
        return reply if ("tubeless" in text and text == GOOD) or changed in text else "Good: " + words(request, 3)

    found = generate("evolve", answer, tmp_path, num_rows=2, max_rounds=1, operations=["deepen"])
    assert reason in found.reasons  # seed 0 fails as the case says, the others succeed and end the run


def test_what_fails_leaves_its_start_unchanged_and_each_success_is_the_next_start(tmp_path: Path) -> None:
    steps = iter(
        ["A harder question about tyres.", "Like the given prompt, but harder.", "An even harder question about tyres."]
    )

    def answer(request: TeacherRequest) -> str:
        if "Do both" in last(request):
            return "no"
        return next(steps) if "harder version" in last(request) else "Reply " + words(request, 4)

    found = generate("evolve", answer, tmp_path, num_rows=2, max_rounds=3, seeds=SEEDS[:1], operations="deepen")
    assert [row.metadata["evolved_from"] for row in found.kept] == [
        "How do I patch a bicycle tyre?",
        "A harder question about tyres.",
    ]
    assert found.reasons == ["copied_prompt"]
    assert found.rejected[0].conversation is not None
    assert found.rejected[0].conversation.metadata["evolved_from"] == "A harder question about tyres."
    assert {row.origin for row in found.kept} == {SEEDS[0].origin}


def test_a_long_apology_and_words_with_content_are_no_faults() -> None:
    assert reply_fault("sorry " + "word " * 80) is None
    assert reply_fault("Yes, 7.") is None
    assert reply_fault("好的。") == ("says_nothing", "the reply holds only punctuation and stop words")
    assert reply_fault("抱歉，我不知道怎么做。") is not None


def test_an_unknown_operation_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no operation named 'deepn'") as caught:
        generate("evolve", [{"text": "x"}], tmp_path, operations=["deepn"])
    assert caught.value.hint == "did you mean 'deepen'?"


# magpie


def test_magpie_sends_a_bare_header_and_answers_what_came(tmp_path: Path) -> None:
    written = iter(["How tall is a giraffe?", "", "Translate the following:", "Name two rivers in Peru."])

    def answer(request: TeacherRequest) -> str:
        return next(written) if request.prefix_only else "Reply " + words(request, 3)

    found = generate("magpie", answer, tmp_path, num_rows=2, seeds=[], task=Task(system_prompt="You know animals."))
    assert [row.messages[1].content for row in found.kept] == ["How tall is a giraffe?", "Name two rivers in Peru."]
    assert found.reasons == ["empty", "ends_in_colon"]
    headers = [request for request in found.asked if request.prefix_only]
    assert [[turn.role for turn in request.messages] for request in headers] == [["system"]] * 4
    assert len({request.key("t") for request in headers}) == 4
    assert len(found.asked) == 6


def test_magpie_refuses_an_endpoint_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="chat endpoint") as caught:
        generate("magpie", lambda request: "", tmp_path, teacher={"kind": "openai", "script": None})
    assert caught.value.where == "recipe.generate.teacher.kind"


def test_a_request_without_a_prefix_keeps_the_key_it_always_had() -> None:
    message = Message(role="user", content="x")
    request = generate_request(message)
    assert "prefix_only" not in request.model_dump(mode="json", exclude_none=True)
    assert request.key("t") != request.model_copy(update={"prefix_only": True}).key("t")


def generate_request(message: Message) -> TeacherRequest:
    return TeacherRequest(messages=(message,), sampling={"max_tokens": 5})  # pyright: ignore[reportArgumentType]


# personas


def test_every_request_has_a_person_of_its_own(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return rows("", *((words(request, 6) + str(n), "r " + words(request, 3)) for n in range(2)))

    task = Task(description="Help with bicycles.", system_prompt="Be kind.")
    found = generate(
        "personas", answer, tmp_path, num_rows=8, rows_per_request=2, seeds=[], task=task, max_similarity=1
    )
    people = {row.metadata["persona"] for row in found.kept}
    assert len(people) == 4
    assert all(any(person in last(request) for request in found.asked) for person in people)
    assert {row.messages[0].content for row in found.kept} == {"Be kind."}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_persons_are_drawn_evenly_from_every_table(language: str) -> None:
    import random

    drawn = [draw_persona(random.Random(n), language) for n in range(2000)]
    assert len(set(drawn)) > 1990
    for values in attributes(language).values():
        assert len(set(values)) == len(values)
        for value in values:
            assert any(value in person for person in drawn)


# back-translation


def test_back_translation_keeps_the_text_and_what_scores_well(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Glue the patch, press it for a minute, pump.")
    (folder / "b.md").write_text("Buy now! Cheap tyres here!")
    (folder / "c.html").write_text("<head><title>x</title></head><p>Oil the chain <b>weekly</b>.</p><script>1</script>")
    (folder / "d.pdf").write_bytes(b"%PDF")
    (folder / "e.txt").write_bytes(b"\xff\xfe")
    script = [
        {"match": "How good.*", "text": "x"} | {"match": "An instruction:.*Cheap", "text": "2"},
        {"match": "An instruction:.*weekly", "text": "Score: great"},
        {"match": "An instruction:.*Glue", "text": "5 - complete"},
        {"match": "Glue", "text": '"How do I fix a hole in a tube?"'},
        {"match": "Cheap", "text": "Sell tyres."},
        {"match": "weekly", "text": "How often is a chain oiled?"},
    ]
    found = generate("back_translate", script, tmp_path, num_rows=10, files={"texts": folder}, seeds=[])
    assert [(row.messages[0].content, row.reply) for row in found.kept] == [
        ("How do I fix a hole in a tube?", "Glue the patch, press it for a minute, pump.")
    ]
    assert found.kept[0].metadata["score"] == 5
    assert found.kept[0].metadata["text_from"] == "texts/a.txt"
    assert sorted(found.reasons) == ["low_score", "no_score", "not_utf8", "unknown_format"]


# translation


def test_translation_goes_turn_by_turn_and_keeps_the_origin(tmp_path: Path) -> None:
    row = seed("How do I patch a bicycle tyre?", "Glue a patch on.", origin="o7", licence="cc0-1.0")
    script = [
        {"match": "translate them.*How do I", "text": "<text>\n怎么补自行车轮胎？\n</text>"},
        {"match": "translate them.*Glue", "text": "贴上一块补丁。"},
    ]
    found = generate("translate", script, tmp_path, num_rows=5, seeds=[row])
    assert [turn.content for turn in found.kept[0].messages] == ["怎么补自行车轮胎？", "贴上一块补丁。"]
    assert (found.kept[0].origin, found.kept[0].metadata["seeds"]) == ("o7", [row.id])
    assert "into Chinese" in last(found.asked[0])
    assert found.asked[0].sampling.temperature == 0


def test_a_translated_prompt_can_be_answered_anew(tmp_path: Path) -> None:
    script = [
        {"match": "translate them", "text": "怎么补自行车轮胎？"},
        {"match": "^Be brief", "text": "先找到漏气的地方，再贴补丁。"},
    ]
    row = seed("How do I patch a bicycle tyre?", "Glue a patch on.", "Be brief.")
    found = generate("translate", script, tmp_path, num_rows=5, seeds=[row], reanswer=True)
    assert found.kept[0].reply == "先找到漏气的地方，再贴补丁。"
    assert [turn.role for turn in found.asked[1].messages] == ["system", "user"]


def test_what_comes_back_untranslated_is_rejected(tmp_path: Path) -> None:
    found = generate("translate", [{"match": ".", "text": SEEDS[0].messages[0].content}], tmp_path, seeds=SEEDS[:1])
    assert (found.kept, found.reasons) == ([], ["untranslated"])


# documents


def test_documents_are_asked_about_chunk_by_chunk_and_answered_from_the_chunk(tmp_path: Path) -> None:
    document = tmp_path / "manual.txt"
    document.write_text("The chain is oiled weekly. " * 12 + "\n\n" + "The tyre is pumped to four bars. " * 12)
    questions = [
        {"type": "fact", "question": "How often is the chain of the bicycle oiled?"},
        {"type": "fact", "question": "What colour is the saddle of the bicycle?"},
        {"type": "summary", "question": "What does the text say?"},
    ]
    script = [
        {"match": "Question: How often", "text": "The chain is oiled weekly."},
        {"match": "Question: What colour", "text": "NOT IN TEXT."},
        {"match": "with the keys", "text": "\n".join(map(json.dumps, questions))},
    ]
    found = generate(
        "documents", script, tmp_path, num_rows=10, rows_per_request=3, seeds=[], files={"manual.txt": document},
        chunk_characters=400, chunk_overlap=100,
    )  # fmt: skip
    assert [row.reply for row in found.kept] == ["The chain is oiled weekly."]
    assert found.kept[0].origin == "document:manual.txt"
    assert found.kept[0].metadata["characters"][0] == 0
    assert found.kept[0].metadata["question_type"] == "fact"
    assert found.reasons[:2] == ["not_in_text", "points_at_text"]
    assert "duplicate" in found.reasons or "rouge_l" in found.reasons  # the next chunk asks the same


# all of them


def test_schema_of_rows_moves_definitions_to_its_root() -> None:
    schema = rows_schema(3, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}, "$schema": "x"})
    assert schema["$defs"] == {"a": {"type": "object"}}
    assert schema["items"]["properties"]["output"] == {"$ref": "#/$defs/a"}
    assert (schema["minItems"], schema["maxItems"]) == (3, 3)


def test_local_teachers_are_held_to_a_schema_and_others_where_the_recipe_says_so(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return rows("", (words(request, 6), words(request, 2)))

    free = generate("self_instruct", answer, tmp_path, num_rows=1)
    held = generate("self_instruct", answer, tmp_path, num_rows=1, constrain=True)
    local = generate("self_instruct", answer, tmp_path, num_rows=1, teacher={"kind": "local", "script": None})
    assert free.asked[0].sampling.json_schema is None
    expected = rows_schema(5, None, message_like([row.messages[0].content for row in SEEDS]))
    assert held.asked[0].sampling.json_schema == local.asked[0].sampling.json_schema == expected
    assert expected["items"]["properties"]["input"] == {"type": "string", "minLength": 1, "maxLength": 200}


@pytest.mark.parametrize(
    ("option", "value", "generator"),
    [("max_rounds", 4, "self_instruct"), ("num_votes", 3, "evolve"), ("files", ["a"], "maths"), ("reanswer", True, "distill"),
     ("turns", 2, "dialogue"), ("follow_up_system", False, "evolve"), ("dialogue_topics", "tree", "magpie"),
     ("min_score", 5, "documents"), ("score_rounds", 2, "translate"), ("augmented_system_prompt", "x", "responses")],
)  # fmt: skip
def test_an_option_that_would_not_act_is_refused_by_name(option: str, value: Any, generator: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}` acts in .* and not in {generator}"):
        Generate(teacher={"kind": "scripted", "script": "s"}, generator=generator, **{option: value})


@pytest.mark.parametrize("generator", ["self_instruct", "evolve", "three_step", "question_response", "translate"])
def test_generators_from_seeds_say_so_where_there_are_none(tmp_path: Path, generator: str) -> None:
    with pytest.raises(DataError) as caught:
        generate(generator, [{"text": "x"}], tmp_path, seeds=[])
    assert caught.value.where == "recipe.ingest.files"


def universal(request: TeacherRequest) -> str:
    """An answer that fits whatever any generator asks, as a function of the request."""
    text, number = last(request), len(words(request, 1))
    if request.prefix_only:
        return "Tell me " + words(request, 6)
    if "The message: about" in text:
        return json.dumps({"message": words(request, 6)})
    if "yes or no" in text:
        return "No"
    if "one digit" in text:
        return "5"
    if "label" in text and "cases for it" in text:
        return json.dumps({"label": words(request, 1), "input": words(request, 6)})
    if '"expression"' in text:
        return problem("Add " + words(request, 6), "3 + 4 = 7\nAnswer: 7", "3 + 4", "7")
    if "training pairs" in text or "new examples" in text or "send to the assistant" in text:
        return "\n".join(
            json.dumps({"input": words(request, 6) + f" {n}" * 3, "output": words(request, 2)})
            for n in range(number % 3 + 2)
        )
    if "write one case" in text.lower():
        return json.dumps({"input": words(request, 5), "output": words(request, 4)})
    if "one per line, numbered" in text:
        return "1. What of " + words(request, 7)
    if '"type" and "question"' in text:
        return json.dumps({"type": "fact", "question": "What of " + words(request, 7)})
    if "Write one dialogue" in text:
        first, second = words(request, 6), words(request, 9)[30:]
        return f"User: {first}\nAssistant: ok {first}\nUser: {second}\nAssistant: so {second}"
    return "Answer " + words(request, 8)


NEEDS_FILES = {"responses", "back_translate", "documents"}


@pytest.mark.parametrize("generator", sorted(GENERATORS))
def test_a_longer_order_begins_with_the_rows_and_requests_of_a_shorter_one(tmp_path: Path, generator: str) -> None:
    source = tmp_path / "source.txt"
    lines = [f"line {n} of {'abcdefghijklmnopqrstuvwxyz'[n % 26] * 4} and {n * n} more" for n in range(60)]
    source.write_text("\n\n".join(lines))
    folder = tmp_path / "many"
    folder.mkdir()
    for n, line in enumerate(lines):
        (folder / f"{n:02d}.txt").write_text(line)
    files = {}
    if generator in NEEDS_FILES:
        files = {"source.txt": source} if generator == "responses" else {"many": folder}
    many = [seed(f"seed {n} {'abcdefgh'[n % 8] * 5} {n * 7}", f"reply {n}") for n in range(30)]
    task = Task(description="Help.", system_prompt="Be brief.")
    if generator == "label_first":
        many = [seed(f"seed {n} {'abcdefgh'[n % 8] * 5}", json.dumps({"even": n % 2 == 0})) for n in range(30)]
        task = task.model_copy(update={"output_schema": {"properties": {"even": {"type": "boolean"}}}})

    def run(num_rows: int) -> Any:
        return generate(generator, universal, tmp_path, num_rows=num_rows, seeds=many, task=task, files=files)

    short, again, long = run(5), run(5), run(17)
    assert [row.model_dump() for row in short.kept] == [row.model_dump() for row in again.kept]
    assert len(short.kept) == 5
    assert len(long.kept) == 17
    assert [row.id for row in long.kept[:5]] == [row.id for row in short.kept]
    asked_short, asked_long = ({request.key("t") for request in found.asked} for found in (short, long))
    assert asked_short <= asked_long
    assert all(isinstance(row, Conversation) for row in long.kept)


@pytest.mark.parametrize("generator", sorted(set(GENERATORS) - {"distill", "maths", "magpie"}))
def test_the_licence_of_what_a_row_was_made_from_goes_with_it(tmp_path: Path, generator: str) -> None:
    many = [
        seed(f"seed {n} {'abcdefgh'[n % 8] * 5}", json.dumps({"even": n % 2 == 0}), licence="cc-by-4.0")
        for n in range(30)
    ]
    task = Task(description="Help.", system_prompt="Be brief.")
    if generator == "label_first":
        task = task.model_copy(update={"output_schema": {"properties": {"even": {"type": "boolean"}}}})
    texts = tmp_path / "texts.jsonl"
    lines = [
        {"text": f"line {n} of {'abcdefghijklmnopqrstuvwxyz'[n % 26] * 4}", "license": "odbl-1.0"} for n in range(20)
    ]
    texts.write_text("\n".join(map(json.dumps, lines)))
    files = {"texts.jsonl": texts} if generator in NEEDS_FILES else {}
    found = generate(generator, universal, tmp_path, num_rows=8, seeds=many, task=task, files=files)
    stamped = [Stamp([Terms("yes", "x", "apache-2.0")], many)(row) for row in found.kept]
    assert len(stamped) == 8
    expected = "odbl-1.0 AND apache-2.0" if files else "cc-by-4.0 AND apache-2.0"
    assert {row.licence for row in stamped} == {expected}


@pytest.mark.parametrize("generator", sorted(GENERATORS))
def test_every_generator_is_documented_and_its_cost_can_be_estimated(generator: str) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "generators.md"
    assert f"| `{generator}` |" in page.read_text(encoding="utf-8")
    for language in ("en", "zh"):
        section = Generate(
            teacher={"kind": "scripted", "script": "s"}, generator=generator, num_rows=100, language=language
        )
        small, price = estimate(section, 10, 60, Price(1, 2)), Price(1, 2)
        large = estimate(section.model_copy(update={"num_rows": 1000}), 10, 60, price)
        assert large["requests"] == pytest.approx(10 * small["requests"], rel=0.1)
        assert 0 < small["usd"] < large["usd"]
        assert max_requests(section) >= small["requests"]
