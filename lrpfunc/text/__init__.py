"""Explanations of models that read text: what to explain, relevance per token, and pictures of it.

    target = text.token(None, position=-1)                      # what the model would write next
    relevance = lrpfunc.attribute(fmodel, params, embedded, rules, target)
    tokens = text.words(tokenizer.convert_ids_to_tokens(ids[0]))
    text.show(tokens, text.per_token(relevance)[0])

`render`, `show`, `html`, `image`, `save` draw one sequence or several: tokens and relevance of one, or a list of tokens
and a relevance (batch, length); `generation` says what each token of an answer rests on, and `matrix` draws it. No
tokenizer is needed, only what it made. Read on in this order: targets, tokens, rows, terminal, pages, images, files,
figures, generations, matrices.
"""

from lrpfunc.text.figures import layers
from lrpfunc.text.files import save
from lrpfunc.text.generations import Generation, generation
from lrpfunc.text.images import image
from lrpfunc.text.matrices import matrix
from lrpfunc.text.pages import html
from lrpfunc.text.rows import per_token
from lrpfunc.text.targets import contrast, token
from lrpfunc.text.terminal import render, show
from lrpfunc.text.tokens import sentences, words

__all__ = [
    "Generation",
    "contrast",
    "generation",
    "html",
    "image",
    "layers",
    "matrix",
    "per_token",
    "render",
    "save",
    "sentences",
    "show",
    "token",
    "words",
]
