"""Tiny models with real tokenizers, for whatever runs the pipeline for real."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    "red blue green black white leather cotton sofa couch chair table lamp phone case charger drill bit shoe sneaker "
    "running trail dress shirt women men kids large small cordless steel wood query product for with and the of size"
).split()


def write(folder: Path) -> None:
    """Write `decoder` (Llama, BPE) and `encoder` (BERT, WordPiece) with random weights below `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<|start|>", "<|end|>"], initial_alphabet=alphabet),
    )
    decoder_tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|start|>", eos_token="<|end|>")
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(decoder_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    decoder.save_pretrained(folder / "decoder")
    decoder_tokenizer.save_pretrained(folder / "decoder")

    (folder / "encoder").mkdir()
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,-'|"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *characters,
        *(f"##{character}" for character in characters),
    ]
    vocabulary = folder / "encoder" / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    encoder_tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    encoder = BertModel(
        BertConfig(
            vocab_size=len(encoder_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
    )
    encoder.save_pretrained(folder / "encoder")
    encoder_tokenizer.save_pretrained(folder / "encoder")
