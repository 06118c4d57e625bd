// An upload link made by a backend in Node, with nothing but the key set and jose:
//   node mint.mjs '{"keys": "var/keys.json", "base": "http://127.0.0.1:8080", "max": 1048576}'
// Members beyond `keys`, `base`, `kid` and `expires_in` are claims. Prints the link.
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { importJWK, SignJWT } from "jose";
import { readRequest } from "./events.mjs";

const { keys, base, kid, expires_in = 3600, ...claims } = await readRequest();

const { keys: jwks } = JSON.parse(await readFile(keys, "utf8"));
// The newest active key is last.
const jwk = jwks.findLast((key) => (kid ? key.kid === kid : key.state === "active"));
const now = Math.floor(Date.now() / 1000);
const token = await new SignJWT({ scope: "upload", ...claims })
  .setProtectedHeader({ alg: jwk.alg, kid: jwk.kid, typ: "upl+jwt" })
  .setIssuer(jwk.iss)
  .setAudience(base)
  .setJti(randomBytes(16).toString("base64url"))
  .setIssuedAt(now)
  .setNotBefore(now)
  .setExpirationTime(now + expires_in)
  .sign(await importJWK(jwk, jwk.alg));

process.stdout.write(`${base}/files?sig=${token}\n`);
