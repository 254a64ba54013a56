"""An application that knows nothing of the lab: python3 application.py PARTY URL.

The SDK finds its settings and its token by itself. One line of JSON says who
the application has become and what it read, or what the SDK said.
"""

import base64
import json
import os
import sys
from urllib.parse import urlparse


def aws(resource):
    import boto3

    path = urlparse(resource)  # s3://bucket/key
    body = boto3.client("s3").get_object(Bucket=path.netloc, Key=path.path[1:])["Body"]
    return boto3.client("sts").get_caller_identity()["Arn"], body.read().decode()


def gcp(resource):
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    response = AuthorizedSession(credentials).get(resource)
    response.raise_for_status()
    return credentials.service_account_email, response.text


def azure(resource):
    import msal
    import requests

    with open(os.environ["AZURE_FEDERATED_TOKEN_FILE"]) as file:
        assertion = file.read()
    client = msal.ConfidentialClientApplication(
        os.environ["AZURE_CLIENT_ID"],
        authority=os.environ["AZURE_AUTHORITY_HOST"] + os.environ["AZURE_TENANT_ID"],
        client_credential={"client_assertion": assertion},
        instance_discovery=False,
    )
    answer = client.acquire_token_for_client(["https://storage.azure.com/.default"])
    if "error" in answer:
        raise RuntimeError(answer["error_description"])
    headers = {"Authorization": "Bearer " + answer["access_token"], "x-ms-version": "2021-08-06"}
    response = requests.get(resource, headers=headers)
    response.raise_for_status()
    payload = answer["access_token"].split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=="))["appid"], response.text


try:
    identity, content = {"aws": aws, "gcp": gcp, "azure": azure}[sys.argv[1]](sys.argv[2])
    print(json.dumps({"identity": identity, "content": content}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    sys.exit(1)
