"""What an MLflow client asks, sent by one of ours: the addresses and bodies it really sends."""

from __future__ import annotations

from typing import Any

import httpx

ROOT = "/t/acme/api/2.0/mlflow"
FILES = "/t/acme/api/2.0/mlflow-artifacts/artifacts"


class Caller:
    """Requests of one tenant; every method returns the JSON of an answer that is 200."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str, **query: Any) -> Any:
        return self._json(await self.client.get(ROOT + path, params=query))

    async def post(self, path: str, **body: Any) -> Any:
        return self._json(await self.client.post(ROOT + path, json=body))

    async def patch(self, path: str, **body: Any) -> Any:
        return self._json(await self.client.patch(ROOT + path, json=body))

    async def delete(self, path: str, **body: Any) -> Any:
        return self._json(await self.client.request("DELETE", ROOT + path, json=body))

    async def refused(self, method: str, path: str, status: int, **rest: Any) -> str:
        """The error code and message of a refusal in MLflow's form."""
        answer = await self.client.request(method, path, **rest)
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error_code", "message"}
        return f"{answer.json()['error_code']}: {answer.json()['message']}"

    async def log_model(self, files: dict[str, bytes], **more: Any) -> str:
        """A logged model with these files, as the client makes one."""
        made = await self.post("/logged-models", experiment_id="0", name="model", **more)
        info = made["model"]["info"]
        place = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for path, content in files.items():
            put = await self.client.put(
                f"{FILES}/{place}/{path}", content=content, headers={"Content-Type": "text/plain"}
            )
            assert put.status_code == 200, put.text
        await self.patch(f"/logged-models/{info['model_id']}", status="LOGGED_MODEL_READY")
        return str(info["model_id"])

    def _json(self, answer: httpx.Response) -> Any:
        assert answer.status_code == 200, answer.text
        return answer.json()
