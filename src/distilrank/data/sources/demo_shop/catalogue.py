"""The demo shop's products: their true attributes, and the titles, fields and descriptions that show some of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from distilrank.core import schemas
from distilrank.data.sources.demo_shop.vocabulary import (
    BRANDS,
    COLORS,
    GENDERS,
    KINDS,
    MODELS,
    PALETTES,
    SPELLINGS,
    TRAILING_AXES,
    Kind,
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_AISLES = {
    department: sorted({kind.aisle for kind in KINDS if kind.department == department})
    for department in sorted({kind.department for kind in KINDS})
}
_TITLE_WORDS = 14
_OPENINGS = ("Made for", "A good choice for", "Ideal for", "Our favourite for")
_FITTING = ("for", "for", "fits", "compatible with")


@dataclass(frozen=True)
class Product:
    """What a product is; `values` are the attributes that queries may ask for, by name."""

    kind: Kind
    brand: str
    model: str
    shade: str
    values: dict[str, str]


class Catalogue:
    """Products with their attributes as arrays, so that a query's grades take a few array operations."""

    def __init__(self, products: Sequence[Product], table: pa.Table) -> None:
        self.products, self.table = products, table

    def __len__(self) -> int:
        return len(self.products)

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Row numbers of each kind's products, ascending."""
        rows: dict[str, list[int]] = {}
        for row, product in enumerate(self.products):
            rows.setdefault(product.kind.name, []).append(row)
        return {name: np.array(numbers) for name, numbers in rows.items()}

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Each attribute of all products; empty strings where a product lacks it."""
        names = sorted({name for product in self.products for name in product.values})
        return {name: np.array([product.values.get(name, "") for product in self.products]) for name in names}


def make(kinds: Sequence[Kind], count: int, seed: str, first_id: int) -> Catalogue:
    """Generate `count` products, spread evenly over `kinds`, with consecutive ids from `first_id`."""
    draw = random.Random(seed)
    order = [kinds[number % len(kinds)] for number in range(count)]
    draw.shuffle(order)
    products = [_product(kind, draw) for kind in order]
    rows = [
        {"product_id": f"P{first_id + number:06d}", **_fields(product, draw)} for number, product in enumerate(products)
    ]
    return Catalogue(products, pa.Table.from_pylist(rows, schema=schemas.PRODUCTS))


def join(first: Catalogue, second: Catalogue) -> Catalogue:
    """Concatenate two catalogues."""
    return Catalogue([*first.products, *second.products], pa.concat_tables([first.table, second.table]))


def _brand_and_model(kind: Kind, draw: random.Random) -> tuple[str, str]:
    brands = BRANDS[kind.brands]
    number = draw.randrange(len(brands))
    # Every brand has separate model names, as in reality: no two makers sell an X2.
    models = MODELS[kind.models][number :: len(brands)] if kind.models else ("",)
    return brands[number], draw.choice(models)


def _product(kind: Kind, draw: random.Random) -> Product:
    brand, model = _brand_and_model(kind, draw)
    family = draw.choice(PALETTES[kind.palette]) if kind.palette != "none" else ""
    values = {axis: draw.choice(options) for axis, options in kind.axes.items()}
    values["brand"] = brand
    values["color"] = family
    values["gender"] = draw.choices(list(GENDERS), (45, 40, 15))[0] if kind.gendered else ""
    # What a main product is, its fitted accessories fit: the two share these attributes.
    values["fits_brand"], values["fits"] = brand, f"{brand} {model}"
    if kind.hosts:
        values["fits_brand"] = values["fits"] = ""
        if kind.fitted:
            host_brand, host_model = _brand_and_model(_BY_NAME[kind.hosts[0]], draw)
            values["fits_brand"], values["fits"] = host_brand, f"{host_brand} {host_model}"
    shade = draw.choice(COLORS[family]) if family else ""
    return Product(kind, brand, model, shade, values)


def _spelled(value: str, draw: random.Random) -> str:
    return draw.choice(SPELLINGS[value]) if value in SPELLINGS and draw.random() < 0.35 else value


def _capitalised(text: str) -> str:
    small = {"with", "and", "for", "in", "by", "to", "a", "the", "of", "x"}
    return " ".join(
        word if word in small or not word[:1].islower() else word[0].upper() + word[1:] for word in text.split()
    )


def _fields(product: Product, draw: random.Random) -> dict[str, str | None]:
    """The product as the shop lists it, sometimes incomplete or with a wrong product type."""
    kind, values = product.kind, product.values
    # Titles omit about one attribute in seven; the description has it.
    titled = [axis for axis in kind.axes if draw.random() < 0.86]
    aisle = draw.choices((kind.aisle, kind.department, draw.choice(_AISLES.get(kind.department, [kind.aisle])), None),
                         (55, 25, 8, 12))[0]  # fmt: skip
    return {
        "title": _title(product, titled, draw),
        "product_type": aisle,
        "brand": product.brand if draw.random() < 0.92 else None,
        "color": _capitalised(product.shade) if product.shade and draw.random() < 0.85 else None,
        "gender": values["gender"] if values["gender"] and draw.random() < 0.75 else None,
        "description": _description(product, titled, draw) if draw.random() < 0.92 else None,
    }


def _title(product: Product, titled: Sequence[str], draw: random.Random) -> str:
    kind, values = product.kind, product.values
    leading = " ".join(_spelled(values[axis], draw) for axis in titled if axis not in TRAILING_AXES)
    trailing = " ".join(_spelled(values[axis], draw) for axis in titled if axis in TRAILING_AXES)
    gender = {"women": "women's", "men": "men's", "unisex": "unisex", "": ""}[values["gender"]]
    gender = gender if draw.random() < 0.9 else ""
    extra = draw.choice(kind.extras)
    shade = product.shade if draw.random() < 0.65 else ""
    noun = draw.choices(kind.nouns, range(len(kind.nouns) + 1, 1, -1))[0]
    if kind.short and (kind.fitted or draw.random() < 0.6):
        host = _BY_NAME[draw.choice(kind.hosts)]
        if draw.random() < 0.6:
            noun = kind.short
        noun += f" {draw.choice(_FITTING)} {values['fits']} {draw.choice(host.nouns)}"
    elif draw.random() < 0.12:  # keyword stuffing
        noun += " " + draw.choice([other for other in kind.nouns if other not in noun and noun not in other] or [""])
    style = draw.random()
    if style < 0.5:
        parts = [product.brand, product.model, gender, leading, noun, trailing, extra, shade and f", {shade}"]
    elif style < 0.75:
        parts = [product.brand, gender, shade, leading, noun, extra, trailing and f"- {trailing}"]
    elif style < 0.9:
        parts = [gender, leading, noun, trailing, extra, f"by {product.brand}", shade and f"- {shade}"]
    else:
        parts = [shade, leading, gender, noun, f"- {product.brand} {product.model}", trailing]
    for dispensable in (extra, shade, f", {shade}", f"- {shade}", trailing, f"- {trailing}", leading):
        if len(" ".join(parts).split()) > _TITLE_WORDS:
            parts = [part for part in parts if part != dispensable]
    words = _capitalised(" ".join(parts)).replace(" ,", ",")
    return words if draw.random() < 0.93 else words.lower()


def _description(product: Product, titled: Sequence[str], draw: random.Random) -> str:
    """One or two sentences: attributes that the title omits, perhaps under another name, and another product."""
    kind, values = product.kind, product.values
    facts = [values[axis] for axis in kind.axes if axis not in titled or draw.random() < 0.3]
    facts += [f"in {product.shade}"] if product.shade and draw.random() < 0.5 else []
    facts += [f"for {values['gender']}"] if values["gender"] in ("women", "men") and draw.random() < 0.5 else []
    facts += [f"fits the {values['fits']}"] if kind.fitted and draw.random() < 0.5 else []
    named = draw.choice((product.brand, f"{product.brand} {draw.choice(kind.nouns)}"))
    sentences = [f"{named}: {', '.join(facts)}." if facts else f"{named} quality at a fair price."]
    use = f"{draw.choice(_OPENINGS)} {draw.choice(kind.uses)}."
    beside = [other for other in KINDS if kind.name in other.hosts] or [_BY_NAME[host] for host in kind.hosts]
    pairs = f"Goes well with our {draw.choice(draw.choice(beside).nouns)}." if beside else use
    sentences.append(draw.choice((use, pairs)))
    return " ".join(sentences[: draw.choice((1, 2, 2))])
