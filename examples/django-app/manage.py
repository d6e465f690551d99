"""A Django project in one file that calls a service by its name.

    pip install django portcall
    python examples/django-app/manage.py runserver 8000

``discovery.lookup`` is all that a library without an integration needs: ``/raw`` opens a socket with it.
"""

from __future__ import annotations

import socket
import sys

import urllib3
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

import discovery
from discovery.integrations.urllib3 import PoolManager

services = PoolManager(timeout=2)


def greeting(request: HttpRequest) -> HttpResponse:
    try:
        answer = services.request("GET", "http://python-micro-service.service.consul/")
    except urllib3.exceptions.HTTPError as exc:
        return HttpResponse(f"nobody to ask: {exc}\n", status=503)
    return HttpResponse(answer.data, status=answer.status)


def raw(request: HttpRequest) -> HttpResponse:
    try:
        instance = discovery.lookup("python-micro-service")
    except discovery.DiscoveryError as exc:
        return HttpResponse(f"nobody to ask: {exc}\n", status=503)
    with socket.create_connection(instance, timeout=2) as connection:
        return HttpResponse(f"connected to {connection.getpeername()}\n")


urlpatterns = [path("", greeting), path("raw", raw)]

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="not a secret: this project has no sessions",
)

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
