# SPDX-License-Identifier: Apache-2.0
"""Errors of the service in the shape of the OpenAI API."""

from typing import Any

from fastapi.responses import JSONResponse

__all__ = ["ApiError", "error_body"]


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what was given, what is allowed, what to do.
        kind: OpenAI's ``type``.
        param: the field at fault.
        code: a word programs can test for.
        headers: further HTTP headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind, param, code)
        self.headers = headers

    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body, self.status, self.headers)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
