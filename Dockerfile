# One image for the registrar, the resolver and the client. `make image` builds it.
#
# Nothing is fetched here: `make image` puts the wheels into build/wheels first, checked against requirements.lock, so
# this also builds on a host without a way out, on any base that has python3 with its venv module.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
COPY build/wheels /wheels
# Two environments: pip stays behind in the first, the image gets the second.
RUN python3 -m venv /pip \
 && python3 -m venv --without-pip /opt/portcall \
 && /pip/bin/pip --python /opt/portcall/bin/python3 install --no-index --find-links /wheels "portcall[host]"

FROM ${BASE_IMAGE}
COPY --from=build /opt/portcall /opt/portcall
COPY tools/docker-entrypoint /usr/local/bin/
# The environment comes first, so that python3 in a container made from this image can `import discovery`.
ENV PATH=/opt/portcall/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1
ENTRYPOINT ["docker-entrypoint"]
