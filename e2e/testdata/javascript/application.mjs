// An application that knows nothing of the lab: node application.mjs PARTY URL
// [OPTION...]. The SDK finds its settings and its token by itself. One line of
// JSON says who the application has become and what it read, or what the SDK said.

// Arguments of the application, beside what the SDKs find.
const [party, resource, ...options] = process.argv.slice(2);

// The path of an object's URL, such as s3://demo/greeting.
const objectOf = (url) => ({ Bucket: new URL(url).hostname, Key: new URL(url).pathname.slice(1) });

const claimsOf = (jwt) => JSON.parse(Buffer.from(jwt.split(".")[1], "base64url"));

const parties = {
  async aws() {
    const { STSClient, GetCallerIdentityCommand } = await import("@aws-sdk/client-sts");
    const { S3Client, GetObjectCommand } = await import("@aws-sdk/client-s3");
    const { HttpsProxyAgent } = await import("https-proxy-agent");
    const proxy = process.env.HTTPS_PROXY; // this SDK does not heed it
    const config = proxy ? { requestHandler: { httpsAgent: new HttpsProxyAgent(proxy) } } : {};
    const caller = await new STSClient(config).send(new GetCallerIdentityCommand());
    const object = await new S3Client(config).send(new GetObjectCommand(objectOf(resource)));
    return { identity: caller.Arn, content: await object.Body.transformToString() };
  },

  async gcp() {
    const { GoogleAuth } = await import("google-auth-library");
    const auth = new GoogleAuth({ scopes: "https://www.googleapis.com/auth/cloud-platform" });
    const { client_email: identity } = await auth.getCredentials();
    const object = await auth.request({ url: resource, responseType: "text" });
    return { identity, content: object.data };
  },

  async azure() {
    const { DefaultAzureCredential, WorkloadIdentityCredential } = await import("@azure/identity");
    const { BlobClient } = await import("@azure/storage-blob");
    const credential = options.includes("default")
      ? new DefaultAzureCredential()
      : new WorkloadIdentityCredential({ disableInstanceDiscovery: true });
    const { token } = await credential.getToken("https://storage.azure.com/.default");
    const blob = await new BlobClient(resource, credential).downloadToBuffer();
    return { identity: claimsOf(token).appid, content: blob.toString() };
  },
};

try {
  console.log(JSON.stringify(await parties[party]()));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, code: error.code, message: error.message }));
  process.exitCode = 1;
}
