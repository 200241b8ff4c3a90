import json

import pytest
import torch

from patchclamp.tasks import Task

CLEAN = ["When Mary and John went to the store, John gave a drink to", "So John is a teacher"]
CORRUPT = ["When Mary and John went to the store, Mary gave a drink to", "So Mary is a teacher"]


def prompts(tokenizer, **change):
    columns = {"clean": CLEAN, "corrupt": CORRUPT, "answers": [" Mary", " he"], "wrong": [" John", " she"]} | change
    return Task.from_prompts(tokenizer, **columns)


def test_from_prompts_aligns_pads_right_and_answers_at_the_last_real_token(tokenizer):
    task = prompts(tokenizer)
    assert task.clean.shape == task.corrupt.shape == task.mask.shape
    for row, text in enumerate(CLEAN):
        ids = tokenizer(text)["input_ids"]
        assert task.clean[row, task.mask[row]].tolist() == ids
        assert task.positions[row] == len(ids) - 1
    assert tokenizer.decode(task.answers[:, 0]) == " Mary he"
    assert tokenizer.decode(task.wrong[:, 0]) == " John she"


def test_several_answers_per_row_are_filled_with_minus_one(tokenizer):
    task = prompts(tokenizer, answers=[[" Mary", " Anna"], " he"])
    assert (task.answers == -1).tolist() == [[False, False], [False, True]]


def test_misaligned_prompts_show_the_row_and_its_tokens(tokenizer):
    with pytest.raises(ValueError, match="row 1: clean and corrupted must align") as error:
        prompts(tokenizer, corrupt=[CORRUPT[0], "So Mary is a good teacher"])
    assert "| good|" in str(error.value)


def test_equal_prompts_are_refused(tokenizer):
    with pytest.raises(ValueError, match="row 1: clean and corrupted are the same"):
        prompts(tokenizer, corrupt=[CORRUPT[0], CLEAN[1]])


def test_an_answer_of_several_tokens_is_refused_with_its_tokens(tokenizer):
    with pytest.raises(ValueError, match=r"row 0: answer ' Xylophonist' must be exactly one token") as error:
        prompts(tokenizer, answers=[" Xylophonist", " he"])
    assert "|X|" in str(error.value)


def test_an_answer_without_its_space_says_which_was_meant(tokenizer):
    with pytest.raises(ValueError, match=r"' Mary' \(with the space\) is one token: did you mean that"):
        prompts(tokenizer, answers=["Mary", " he"])


def test_an_answer_both_right_and_wrong_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"row 1: token .* both as a right and as a wrong"):
        prompts(tokenizer, wrong=[" John", " he"])


def test_columns_of_different_length_are_refused(tokenizer):
    with pytest.raises(ValueError, match="'wrong': 1"):
        prompts(tokenizer, wrong=[" John"])


def test_a_model_without_tokenizer_is_pointed_to_from_tokens():
    with pytest.raises(TypeError, match="from_tokens"):
        prompts(object())


def test_from_tokens_takes_lists_and_tensors():
    lists = Task.from_tokens(
        clean=[[1, 2, 3], [4, 5]], corrupt=[[1, 9, 3], [4, 6]], answers=[7, 8], wrong=[[1, 2], [3]]
    )
    assert lists.positions.tolist() == [2, 1]
    assert lists.wrong.tolist() == [[1, 2], [3, -1]]
    tensors = Task.from_tokens(
        clean=lists.clean, corrupt=lists.corrupt, answers=torch.tensor([7, 8]), wrong=lists.wrong, mask=lists.mask
    )
    for key in ("clean", "corrupt", "answers", "wrong", "mask"):
        assert torch.equal(getattr(tensors, key), getattr(lists, key))


def test_from_tokens_checks_alignment_difference_and_padding():
    with pytest.raises(ValueError, match="row 0: clean and corrupted must have the same number"):
        Task.from_tokens(clean=[[1, 2, 3]], corrupt=[[1, 2]], answers=[1], wrong=[2])
    with pytest.raises(ValueError, match="row 0: clean and corrupted are the same"):
        Task.from_tokens(clean=[[1, 2]], corrupt=[[1, 2]], answers=[1], wrong=[2])
    with pytest.raises(ValueError, match="right padded"):
        ids = torch.tensor([[1, 2]])
        Task.from_tokens(clean=ids, corrupt=ids + 1, answers=[1], wrong=[2], mask=torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match="row 0: answers is empty"):
        Task.from_tokens(clean=[[1, 2]], corrupt=[[1, 3]], answers=[[-1]], wrong=[2])


def test_slices_keep_rows_and_drop_padding_that_nothing_needs(tokenizer):
    task = prompts(tokenizer)
    short = task[1:]
    assert len(short) == 1
    assert short.clean.shape[1] == len(tokenizer(CLEAN[1])["input_ids"])
    assert short.clean_text == (CLEAN[1],)
    assert task[[1, 0]].answers.tolist() == task.answers.flip(0).tolist()
    assert task[torch.tensor([True, False])].clean_text == (CLEAN[0],)
    with pytest.raises(TypeError, match=r"task\[0:1\]"):
        task[0]
    with pytest.raises(IndexError, match="no prompt"):
        task[5:]


def test_to_moves_every_tensor(tokenizer):
    moved = prompts(tokenizer).to("meta")
    assert {t.device.type for t in (moved.clean, moved.corrupt, moved.answers, moved.wrong, moved.mask)} == {"meta"}
    assert {where.device.type for where in moved.labels.values()} == {"meta"}


def test_save_and_load_give_the_same_task(tokenizer, tmp_path):
    task = prompts(tokenizer, answers=[[" Mary", " Anna"], " he"])
    task.save(tmp_path / "task.jsonl")
    back = Task.load(tmp_path / "task.jsonl")
    for key in ("answers", "wrong", "mask"):
        assert torch.equal(getattr(back, key), getattr(task, key))
    assert torch.equal(back.clean[task.mask], task.clean[task.mask])
    assert torch.equal(back.corrupt[task.mask], task.corrupt[task.mask])
    assert (back.name, back.clean_text, back.corrupt_text) == (task.name, task.clean_text, task.corrupt_text)
    assert {role: where.tolist() for role, where in back.labels.items()} == {"END": task.positions.tolist()}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


ROW = {"clean": CLEAN[1], "corrupt": CORRUPT[1], "answer": " he", "wrong": [" she"]}


def test_from_jsonl_equals_from_prompts(tokenizer, tmp_path):
    rows = [
        {"clean": c, "corrupt": d, "answer": a, "wrong": [w]}
        for c, d, a, w in zip(CLEAN, CORRUPT, [" Mary", " he"], [" John", " she"], strict=True)
    ]
    task = Task.from_jsonl(write(tmp_path / "mine.jsonl", *rows), tokenizer)
    assert task.name == "mine"
    assert torch.equal(task.clean, prompts(tokenizer).clean)
    assert torch.equal(task.wrong, prompts(tokenizer).wrong)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 3: not JSON"),
        (ROW | {"anwser": 1}, "line 3: unknown key 'anwser'. Did you mean 'answer'"),
        ({"clean": "a"}, "line 3: missing corrupt, answer, wrong"),
        (["a"], "line 3: expected an object"),
        (ROW | {"clean": 3}, "line 3: 'clean' must be a text"),
        (ROW | {"answer": 3}, "line 3: answer 3 is not a text"),
        (ROW | {"corrupt": "So Mary"}, "line 3: clean and corrupted must align"),
        (ROW | {"answer": " Xylophonist"}, "line 3: answer ' Xylophonist' must be exactly one token"),
        (ROW | {"wrong": []}, "line 3: no wrong answer is given"),
    ],
)
def test_from_jsonl_names_the_line_of_an_error(tokenizer, tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", ROW, "", row)
    with pytest.raises(ValueError, match=r"bad\.jsonl") as error:
        Task.from_jsonl(path, tokenizer)
    assert message in str(error.value)


def test_load_and_from_jsonl_point_to_each_other(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="from_jsonl"):
        Task.load(write(tmp_path / "texts.jsonl", ROW))


def test_repr_says_what_it_is(tokenizer):
    assert "2 prompts" in repr(prompts(tokenizer))
    assert "When Mary" in repr(prompts(tokenizer))


def test_at_answer_picks_the_last_real_position():
    task = Task.from_tokens(clean=[[1, 2, 3], [4, 5]], corrupt=[[1, 9, 3], [4, 6]], answers=[7, 8], wrong=[1, 2])
    logits = torch.arange(2 * 3 * 2).view(2, 3, 2).float()
    assert torch.equal(task.at_answer(logits), torch.stack([logits[0, 2], logits[1, 1]]))
    with pytest.raises(ValueError, match="expected logits"):
        task.at_answer(logits[:, :2])
