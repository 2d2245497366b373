"""Saying why: tags, a text and a box about one picture, which an editor carries out at once; or an
edit of it that was made elsewhere."""

import math
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any

from scoretune.commands.studio import editing
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, body_of, rater, sample_of
from scoretune.training.feedback.person import CATEGORIES

if TYPE_CHECKING:
    from fastapi import APIRouter
    from torch import Tensor

TAGS = tuple(CATEGORIES)
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
        prompt=before.full_prompt,
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
    if studio.editing is None:
        said = editing.carried(studio.store, number)
    else:
        said = studio.editing.carried(number)
    return {
        "sample": sample,
        "tags": TAGS,
        "said": said,
        "busy": any(one.waiting for one in said),
        "editor": studio.editing.editor if studio.editing else "",
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
        if body_of(studio, request, "why", ticket) != str(number):
            raise Refused(403, "this page was of another picture: reload it")
        kept = [tag.strip()[: LONGEST // 50] for tag in tags if tag.strip()]
        area = box_of(box)
        if not (kept or text.strip() or area):
            raise Refused(422, "say something: a tag, a text, or a box on the picture")
        voter, note = rater(request), "Stored: thank you."
        studio.store.add_reason(
            key=ticket, rater=voter, sample=number, tags=kept, text=text.strip(), box=area
        )
        if studio.editing is not None:
            own = studio.store.reasons(sample=number, rater=voter)
            studio.editing.begin(next(reason for reason in own if reason.key == ticket))
        return studio.page(request, "said.html", **shown(studio, number, note))

    @router.get("/why/{number}/said")
    def said(request: Request, number: Number) -> Response:
        return studio.page(request, "said.html", **shown(studio, number))

    @router.post("/why/{number}/edit")
    def edit(request: Request, number: Number, reason: Annotated[int, Form()]) -> Response:
        meant = {one.id: one for one in studio.store.reasons(sample=number)}.get(reason)
        if studio.editing is None or meant is None:
            raise Refused(404, "there is no editor, or nobody has said this")
        studio.editing.begin(meant)
        return studio.page(request, "said.html", **shown(studio, number))

    @router.post("/why/{number}/upload")
    def upload(request: Request, number: Number, picture: Annotated[bytes, File()]) -> Response:
        add_edit(studio, rater(request), number, picture)
        note = "Your edit is stored, and paired with this picture to be voted on."
        return studio.page(request, "said.html", **shown(studio, number, note))

    return router
