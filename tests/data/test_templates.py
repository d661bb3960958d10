import pytest

from aura.data.templates import TEMPLATES, Template, get_template, render, render_followup

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
TURNS = [("What?", "The bus [SEG]."), ("More?", "No.")]
EXPECTED = {
    "llava_v1": f"{HUMAN} USER: <image>\nWhat? ASSISTANT: The bus[SEG].</s>USER: More? ASSISTANT: No.</s>",
    "vicuna_v1": (f"{HUMAN} USER: <image>\nWhat? ASSISTANT: The bus[SEG].</s>USER: More? ASSISTANT: No.</s>").replace(
        "human", "user"
    ),
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n"
        "<image>\nWhat? [/INST] The bus[SEG]. </s><s>[INST] More? [/INST] No. </s>"
    ),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face</s>\n"
        "<|im_start|>user\n<image>\nWhat?</s>\n<|im_start|>assistant\nThe bus[SEG].</s>\n"
        "<|im_start|>user\nMore?</s>\n<|im_start|>assistant\nNo.</s>"
    ),
}


def written(name, turns=TURNS):
    return render(get_template(name), turns, image="<image>", bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_text_is_exactly_the_published_one(name):
    assert written(name).text == EXPECTED[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_spans_hold_the_answers_and_their_end(name):
    text, spans = written(name)
    lead, close = {"llava_llama_2": (" ", " "), "smollm2": ("", "")}.get(name, (" ", ""))
    assert [text[a:b] for a, b in spans] == [f"{lead}The bus[SEG].{close}</s>", f"{lead}No.{close}</s>"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_its_open_prompt_its_answers_and_its_followups(name):
    text, spans = written(name)
    answers = [text[a:b] for a, b in spans]
    opening = written(name, [("What?", None)])
    assert opening.spans == ()
    followup = render_followup(get_template(name), "More?", bos="<s>", eos="</s>")
    assert opening.text + answers[0].removesuffix("</s>") + followup + answers[1] == text


def test_white_space_around_questions_and_answers_and_before_seg_is_dropped():
    untidy = written("llava_v1", [(" What?\n", "\n The bus \n [SEG].  "), ("More? ", " No.")])
    assert untidy == written("llava_v1")
    assert written("llava_v1", [("What?", " [SEG] [SEG]")]).text.endswith(" ASSISTANT:[SEG][SEG]</s>")


def test_another_chat_format_is_one_entry():
    chat = Template(
        start="<|im_start|>user\n",
        ask="<eos>\n<|im_start|>assistant\n",
        again="\n<|im_start|>user\n",
        lead="",
        begin=False,
    )
    text, spans = render(chat, TURNS, image="<image>", bos=None, eos="<|im_end|>")
    assert text == (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nThe bus[SEG].<|im_end|>\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>"
    )
    assert [text[a:b] for a, b in spans] == ["The bus[SEG].<|im_end|>", "No.<|im_end|>"]


def test_an_unknown_name_lists_the_known_ones_and_a_missing_bos_is_an_error():
    with pytest.raises(ValueError, match=r"'alpaca'.*llava_v1"):
        get_template("alpaca")
    with pytest.raises(ValueError, match="beginning-of-sequence"):
        render(get_template("llava_llama_2"), TURNS, image="<image>", bos=None, eos="</s>")
