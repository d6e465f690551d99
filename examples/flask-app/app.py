"""A Flask application that calls a service by its name.

    pip install flask 'portcall[requests]'
    discovery register flask-app --port 8000 --check-http /health -- \
        flask --app examples/flask-app/app.py run --port 8000

The session is made once and shared: it balances every request over the instances there are then.
"""

from __future__ import annotations

import requests
from flask import Flask

from discovery.integrations.requests import Session

app = Flask(__name__)
services = Session()


@app.get("/")
def greeting() -> tuple[str, int]:
    try:
        answer = services.get("http://python-micro-service.service.consul/", timeout=2)
    except requests.RequestException as exc:
        return f"nobody to ask: {exc}\n", 503
    return answer.text, answer.status_code


@app.get("/health")
def health() -> str:
    return "ok\n"
