PY := .venv/bin/python
gen:
	rm -rf controlplane/pb/etcd controlplane/pb/k8s controlplane/pb/quarterdeck
	.venv/bin/python -m grpc_tools.protoc -Icontrolplane/pb=proto \
	  --python_out=. --grpc_python_out=. --plugin=.venv/bin/protoc-gen-mypy --plugin=.venv/bin/protoc-gen-mypy_grpc --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
	  $$(cd proto && find . -name '*.proto' | sort | sed 's|^\./|controlplane/pb/|')
	find controlplane/pb -type d -exec touch {}/__init__.py \;
	grep -L 'class .*Stub' $$(find controlplane/pb -name '*_pb2_grpc.py') | while read f; do rm -f $$f $${f}i; done
