# ExpertScope on a CPU. Build: docker build -t expertscope .
# Run: docker run --rm -p 127.0.0.1:8501:8501 -v expertscope:/data expertscope
FROM python:3.11-slim

# The index of CPU-only torch builds that PyTorch's own site names; the default brings several GB of CUDA libraries.
ARG TORCH_INDEX=""

RUN useradd --create-home --uid 10001 expertscope && mkdir /data && chown expertscope /data
WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch -c constraints.txt --index-url "$TORCH_INDEX"; fi \
    && pip install --no-cache-dir -r requirements.txt -c constraints.txt
COPY app.py serve.py LICENSE README.md ./
COPY .streamlit .streamlit
COPY cache cache
COPY core core
COPY demo demo
COPY pages pages

USER expertscope
ENV EXPERTSCOPE_HOME=/data HF_HOME=/data/huggingface OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=3)"]
# Inside the container it listens on all addresses; which of the host's it is published on is for `-p` to say.
CMD ["python", "serve.py", "--server.address", "0.0.0.0", "--server.port", "8501"]
