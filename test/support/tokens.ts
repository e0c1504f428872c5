import { generateKeyPairSync } from 'node:crypto';
import { SignJWT } from 'jose';

/** What the tokens of an issuer of one's own say, beside whose they are. */
export interface TestIssuer {
  /** Environment of a service that takes its tokens. */
  readonly env: Readonly<Record<string, string>>;
  token(tenant: string, subject: string, scope: string): Promise<string>;
}

export function createIssuer(): TestIssuer {
  const issuer = 'https://issuer.example';
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  return {
    env: {
      COLLOQUY_JWT_ISSUER: issuer,
      COLLOQUY_JWT_AUDIENCE: 'colloquy',
      COLLOQUY_JWT_PUBLIC_KEY: publicKey.export({ type: 'spki', format: 'pem' }) as string,
    },
    token: (tenant, subject, scope) =>
      new SignJWT({ tenant, scope })
        .setProtectedHeader({ alg: 'EdDSA' })
        .setIssuer(issuer)
        .setAudience('colloquy')
        .setSubject(subject)
        .setExpirationTime('1h')
        .sign(privateKey),
  };
}

export const bearer = (credential: string): { readonly authorization: string } => ({
  authorization: `Bearer ${credential}`,
});
