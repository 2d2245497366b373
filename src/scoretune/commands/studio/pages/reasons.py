"""Saying why: tags, a text and a box about one picture; or an edit of it, made elsewhere."""

import math
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any

from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, rater, sample_of

if TYPE_CHECKING:
    from fastapi import APIRouter
    from torch import Tensor

TAGS = ("wrong object", "wrong colour", "wrong count", "wrong place", "not sharp", "artefacts")
MOST_PIXELS = 2**22
"""Of a picture that is uploaded: 2048 × 2048."""
LONGEST = 2000
"""Characters of a text; of a tag of one's own, a fiftieth."""

Box = tuple[float, float, float, float]


def box_of(text: str) -> Box | None:
    """Left, top, right and bottom as shares of the picture, from four numbers with commas; None for
    no box. Raises Refused for anything else."""
    if not text.strip():
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise Refused(422, "a box is four numbers: left, top, right, bottom") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise Refused(422, "a box lies within the picture: 0 to 1, left before right")
    return left, top, right, bottom


def picture_of(payload: bytes) -> "Tensor":
    """An uploaded picture [3, H, W] in [0, 1]. Raises Refused for what is none, or is too large."""
    import torch

    from scoretune.data import images

    try:
        pixels = torch.from_numpy(images.decoded(BytesIO(payload), most=MOST_PIXELS))
    except (ValueError, OSError) as error:
        raise Refused(422, f"this is no picture that can be used: {error}") from error
    return pixels.permute(2, 0, 1).expand(3, -1, -1)


def add_edit(studio: Studio, voter: int, number: int, payload: bytes) -> None:
    """Store an edit of a sample and pair the two. Raises Refused for one that is no edit of it."""
    before = sample_of(studio, number)
    pixels, old = picture_of(payload), studio.store.pixels(before.picture)
    if pixels.shape != old.shape:
        height, width = old.shape[1:]
        raise Refused(422, f"an edit is as large as its picture: {width} × {height} pixels")
    sha256 = studio.store.add_picture(pixels)
    if sha256 == before.picture or math.isclose(float(pixels.std()), 0.0, abs_tol=1e-6):
        raise Refused(422, "this picture shows no edit: it is the same, or of one colour")
    edited = studio.store.add_sample(
        prompt=before.prompt,
        picture=sha256,
        source="upload",
        settings={"rater": voter},
        parent=before.id,
        round=before.round,
        key=f"upload/{before.id}/{sha256}",
    )
    studio.store.add_pair(before.id, edited.id)


def shown(studio: Studio, number: int, note: str = "") -> dict[str, Any]:
    sample = sample_of(studio, number)
    return {
        "sample": sample,
        "tags": TAGS,
        "reasons": studio.store.reasons(sample=number),
        "note": note,
    }


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, File, Form, Path, Request, Response

    Number = Annotated[int, Path(ge=1, lt=2**63)]

    router = APIRouter()

    @router.get("/why/{number}")
    def page(request: Request, number: Number) -> Response:
        values = shown(studio, number)
        ticket = studio.keys.ticket("why", rater(request), str(number))
        return studio.page(request, "why.html", ticket=ticket, **values)

    @router.post("/why/{number}")
    def why(
        request: Request,
        number: Number,
        ticket: Annotated[str, Form(max_length=100)],
        tags: Annotated[list[str], Form(max_length=len(TAGS) + 1)] = [],  # noqa: B006
        text: Annotated[str, Form(max_length=LONGEST)] = "",
        box: Annotated[str, Form(max_length=100)] = "",
    ) -> Response:
        voter = rater(request)
        if studio.keys.body("why", voter, ticket) != str(number):
            raise Refused(403, "this page was not shown to you: reload it")
        kept = [tag.strip()[: LONGEST // 50] for tag in tags if tag.strip()]
        area = box_of(box)
        if not (kept or text.strip() or area):
            raise Refused(422, "say something: a tag, a text, or a box on the picture")
        studio.store.add_reason(
            key=ticket, rater=voter, sample=number, tags=kept, text=text.strip(), box=area
        )
        return studio.page(request, "said.html", **shown(studio, number, "Stored: thank you."))

    @router.post("/why/{number}/upload")
    def upload(request: Request, number: Number, picture: Annotated[bytes, File()]) -> Response:
        add_edit(studio, rater(request), number, picture)
        note = "Your edit is stored, and paired with this picture to be voted on."
        return studio.page(request, "said.html", **shown(studio, number, note))

    return router
