#!/bin/sh
# s3rver 3.7.1 takes a conditional write (If-None-Match: *) for a plain one: the second writer overwrites the first.
# Needs node, npm and python3. Installs into a temporary folder, which is removed at the end.
set -eu
place=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$place"' EXIT
cd "$place"
npm install --no-fund --no-audit --silent s3rver@3.7.1 >/dev/null 2>&1
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check boto3==1.44.8
cat > serve.js <<'JS'
const S3rver = require("s3rver");
new S3rver({ port: 0, address: "127.0.0.1", silent: true, directory: "data", configureBuckets: [{ name: "claims" }] })
  .run()
  .then(({ port }) => require("fs").writeFileSync("port", String(port)));
JS
node serve.js &
server=$!
until [ -s port ]; do sleep 0.1; done
env/bin/python - "$(cat port)" <<'PY'
import sys
import boto3
from botocore.exceptions import ClientError

s3 = boto3.client(
    "s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}", region_name="us-east-1",
    aws_access_key_id="S3RVER", aws_secret_access_key="S3RVER",
)
for writer in ("first", "second"):
    try:
        s3.put_object(Bucket="claims", Key="row", Body=writer.encode(), IfNoneMatch="*")
        print(f"{writer} writer: 200, it has the claim")
    except ClientError as error:
        print(f"{writer} writer: {error.response['ResponseMetadata']['HTTPStatusCode']}")
print("what lies there:", s3.get_object(Bucket="claims", Key="row")["Body"].read().decode())
PY
