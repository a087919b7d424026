"""Routes of the leaderboards: the list, each leaderboard, and its numbers as CSV and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from workingpapers.runs.leaderboard import Leaderboard
from workingpapers.runs.present import as_json, command, provenance
from workingpapers.site.web.measured import Snapshot, find_board, fitting
from workingpapers.site.web.render import or_missing, page
from workingpapers.site.web.session import recognise
from workingpapers.tasks.protocol import load_task

if TYPE_CHECKING:
    from workingpapers.runs.plot import Plot

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])

Asked = Annotated[str, Query(max_length=200)]


@router.get("/leaderboards")
def boards(request: Request, task: Asked = "", data: Asked = "", hardware: Asked = "") -> Response:
    """Answer with the list of leaderboards, by task."""
    snapshot = request.app.state.measured.now()
    every = list(snapshot.boards.values())
    options = {
        "task": sorted({board.conditions.task for board in every}),
        "data": sorted({board.conditions.data for board in every}),
        "hardware": sorted({machine for board in every for machine in board.machines}),
    }
    found = fitting(snapshot, task=task, data=data, hardware=hardware)
    groups = [(load_task(name), [b for b in found if b.conditions.task == name]) for name in options["task"]]
    return page(
        request,
        "boards.html",
        groups=[group for group in groups if group[1]],
        asked={"task": task, "data": data, "hardware": hardware},
        any=bool(every),
        tasks=options["task"],
        datasets=options["data"],
        hardware=options["hardware"],
        left_out=snapshot.left_out,
    )


@router.get("/leaderboards/{name}.json")
def board_json(request: Request, name: str, hardware: Asked = "") -> Response:
    """Answer with a leaderboard and every single run of it."""
    board = _board(request.app.state.measured.now(), name, hardware)
    return Response(as_json(board), media_type="application/json")


@router.get("/leaderboards/{name}.csv")
def board_csv(request: Request, name: str, hardware: Asked = "") -> Response:
    """Answer with a leaderboard's table."""
    board = _board(request.app.state.measured.now(), name, hardware)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(board.to_csv(), media_type="text/csv", headers=headers)


async def _plots(request: Request, name: str, hardware: Asked = "") -> list[Plot]:
    """Return a leaderboard's plots, drawn one leaderboard after another; of one machine, none are drawn."""
    state = request.app.state
    snapshot = await run_in_threadpool(state.measured.now)
    if hardware or name not in snapshot.boards:
        return []
    drawn = snapshot.drawn(name)
    return await to_thread.run_sync(snapshot.plots, name, limiter=state.drawing) if drawn is None else drawn


@router.get("/leaderboards/{name}")
def board_page(
    request: Request, name: str, plots: Annotated[list[Any], Depends(_plots)], hardware: Asked = ""
) -> Response:
    """Answer with a leaderboard; of one machine only where that is named."""
    snapshot = request.app.state.measured.now()
    board = _board(snapshot, name, hardware)
    at = board.conditions
    return page(
        request,
        "leaderboard.html",
        board=board,
        papers=snapshot.papers,
        plots=plots,
        command=command(board),
        machines=sorted(snapshot.boards[name].machines),
        narrowed={"hardware": hardware} if hardware else {},
        elsewhere=[
            other
            for other in snapshot.boards.values()
            if (other.conditions.task, other.conditions.setting) == (at.task, at.setting) and other.conditions != at
        ],
        **provenance(board),
    )


def _board(snapshot: Snapshot, name: str, hardware: str) -> Leaderboard:
    """Return a leaderboard by its permalink, 404 if there is none; of one machine where that is asked for."""
    with or_missing():
        find_board(snapshot, name)
    return find_board(snapshot, name, hardware)
