"""Text that a trained decoder writes, and the export of the decoder in the format of Hugging Face."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.files import write_file
from polargrad.lab.lm.tokenizer import END_OF_TEXT
from polargrad.lab.options import check_integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polargrad.lab.lm.tokenizer import Tokenizer


@torch.no_grad()
def sample(
    module: Any,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> str:
    """Text that a decoder writes after a prompt, token by token.

    Each token is drawn from softmax(logits / temperature) over the `top_k` most likely ones; at temperature 0 it is the
    most likely one. It sees as many of the tokens before it as the model has positions, computed anew for each token.

    Args:
        module: the decoder; `module(input_ids=(1, s)).logits` is (1, s, vocabulary).
        tokenizer: of the text that it was trained on.
        prompt: text to begin with; without one the end of a text, after which another begins.
        tokens: number of tokens at most; the end of a text ends it.
        temperature: at least 0.
        top_k: number of tokens to draw from.
        seed: of the draws; no other random stream is moved.

    Returns:
        The text after the prompt.

    Raises:
        ValueError: a number out of range.
    """
    check_integer("tokens", tokens)
    check_integer("top_k", top_k)
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0; got {temperature!r}")
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    ids = (tokenizer.encode([prompt])[0] if prompt else []) or [tokenizer.end_of_text]
    begin = len(ids)
    try:
        for _ in range(tokens):
            seen = torch.tensor([ids[-module.config.max_position_embeddings :]], device=device)
            logits = module(input_ids=seen).logits[0, -1, : tokenizer.vocab_size].float().cpu()
            if temperature == 0:
                chosen = int(logits.argmax())
            else:
                best = logits.topk(min(top_k, len(logits)))
                drawn = torch.multinomial((best.values / temperature).softmax(-1), 1, generator=draw)
                chosen = int(best.indices[drawn])
            if chosen == tokenizer.end_of_text:
                break
            ids.append(chosen)
    finally:
        module.train(was_training)
    return tokenizer.decode(ids[begin:])


def export(module: PreTrainedModel, tokenizer: Tokenizer, folder: str | Path, card: str) -> Path:
    """Write a decoder as `transformers` reads it: safetensors, configuration, tokenizer, and a card in Markdown.

    Rows of its vocabulary beyond the tokenizer's, which padding leaves untrained, are not written.

    Args:
        module: the decoder.
        tokenizer: of the text that it was trained on.
        folder: new folder; it appears when it is complete.
        card: what the model is.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists and is left as it is; give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if tokenizer.vocab_size < module.config.vocab_size:
        module = copy.deepcopy(module)
        module.resize_token_embeddings(tokenizer.vocab_size)
    end = tokenizer.backend.id_to_token(tokenizer.end_of_text) or END_OF_TEXT
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as made:
        config, generation = module.config, module.generation_config
        before = config.eos_token_id, config.bos_token_id, config.use_cache
        config.eos_token_id = config.bos_token_id = tokenizer.end_of_text
        config.use_cache = True
        if generation is not None:
            generation.eos_token_id = generation.bos_token_id = generation.pad_token_id = tokenizer.end_of_text
        try:
            module.save_pretrained(made)
        finally:
            config.eos_token_id, config.bos_token_id, config.use_cache = before
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend,
            eos_token=end,
            bos_token=end,
            pad_token=end,
            model_max_length=config.max_position_embeddings,
            clean_up_tokenization_spaces=False,
        )
        fast.save_pretrained(made)
        write_file(Path(made) / "README.md", card)
        os.chmod(made, 0o755)
        Path(made).rename(folder)
        Path(made).mkdir()  # which the context manager deletes
    return folder
