import { createServer, type Server } from 'node:http';
import { type AddressInfo } from 'node:net';
import { createSecretKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { exportJWK, SignJWT } from 'jose';
import { type Identity } from '../../../src/access/caller.js';
import { Tokens } from '../../../src/access/tokens.js';
import { type TokenSettings } from '../../../src/config.js';

const one = generateKeyPairSync('ed25519');
const another = generateKeyPairSync('ed25519');
const pemOf = (key: KeyObject): string => key.export({ type: 'spki', format: 'pem' }) as string;

const SETTINGS: TokenSettings = {
  issuer: 'https://issuer.example',
  audience: ['colloquy', 'other'],
  keys: { pem: pemOf(one.publicKey) },
  claims: { tenant: 'tenant', scopes: 'scope', owner: 'sub' },
};
const CLAIMS = { tenant: 'acme', scope: 'sessions:read sessions:write:own generate:own nonsense' };

interface Made {
  readonly claims?: Record<string, unknown>;
  readonly key?: KeyObject;
  readonly alg?: string;
  readonly kid?: string;
  readonly issuer?: string;
  readonly audience?: string;
  readonly subject?: string | undefined;
  readonly expires?: string | number | undefined;
}

function token({
  claims = CLAIMS,
  key = one.privateKey,
  alg = 'EdDSA',
  kid,
  ...more
}: Made = {}): Promise<string> {
  const { issuer = SETTINGS.issuer, audience = 'colloquy' } = more;
  const jwt = new SignJWT(claims)
    .setProtectedHeader({ alg, ...(kid !== undefined && { kid }) })
    .setIssuer(issuer)
    .setAudience(audience);
  const subject = 'subject' in more ? more.subject : 'alice';
  if (subject !== undefined) jwt.setSubject(subject);
  const expires = 'expires' in more ? more.expires : '1h';
  if (expires !== undefined) jwt.setExpirationTime(expires);
  return jwt.sign(key);
}

const failures: unknown[] = [];
const tokensOf = (settings: Partial<TokenSettings> = {}): Tokens =>
  new Tokens({ ...SETTINGS, ...settings }, (error) => failures.push(error));
const identify = async (made: string, tokens = tokensOf()): Promise<Identity> => {
  const identity = await tokens.identify(made);
  if (!identity) throw new Error('this has not the form of a token');
  return identity;
};

describe('a token', () => {
  it('given valid claims, when it is presented, then they say who calls and what is allowed', async () => {
    expect(await identify(await token())).toEqual({
      tenant: 'acme',
      actor: 'alice',
      scopes: new Set(['sessions:read']),
      own: { owner: 'alice', scopes: new Set(['sessions:write', 'generate']) },
    });
  });

  it('given scopes as a list and claims of other names, when it is presented, then these are read', async () => {
    const settings = { claims: { tenant: 'org', scopes: 'permissions', owner: 'user' }, audience: ['x'] };
    const claims = { org: 'acme', permissions: ['generate:own', 7], user: 'u-1' };
    const identity = await identify(await token({ claims, audience: 'x' }), tokensOf(settings));
    expect(identity).toMatchObject({ actor: 'alice', own: { owner: 'u-1', scopes: new Set(['generate']) } });
  });

  it('given a tenant in the settings, when it is presented, then its claim does not matter', async () => {
    expect(await identify(await token(), tokensOf({ tenant: 'fixed' }))).toMatchObject({ tenant: 'fixed' });
  });

  it('given the scope admin, when the tenant is not *, then it does not hold', async () => {
    const claims = { tenant: 'acme', scope: 'admin generate' };
    expect((await identify(await token({ claims }))).scopes).toEqual(new Set(['generate']));
    const ofOperator = await identify(await token({ claims: { ...claims, tenant: '*' } }));
    expect(ofOperator.scopes).toEqual(new Set(['generate', 'admin']));
  });

  const secret = createSecretKey(Buffer.from(pemOf(one.publicKey)));
  const unsigned = (claims: object): string =>
    [{ alg: 'none' }, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.') + '.';
  it.each<[string, () => Promise<string>]>([
    ['another key', () => token({ key: another.privateKey })],
    ['another issuer', () => token({ issuer: 'https://evil.example' })],
    ['another audience', () => token({ audience: 'somebody' })],
    ['a time that is over', () => token({ expires: Math.floor(Date.now() / 1000) - 60 })],
    ['no end', () => token({ expires: undefined })],
    ['no subject', () => token({ subject: undefined })],
    ['a subject with a line break', () => token({ subject: 'a\nb' })],
    ['no tenant', () => token({ claims: { scope: 'generate' } })],
    ['a tenant that is none', () => token({ claims: { ...CLAIMS, tenant: '../acme' } })],
    ['a tenant that is a list', () => token({ claims: { ...CLAIMS, tenant: ['acme'] } })],
    ['the public key as a secret', () => token({ key: secret, alg: 'HS256' })],
    ['no signature', () => Promise.resolve(`${unsigned({ sub: 'alice', ...CLAIMS })}x`)],
    [
      'a changed payload',
      async () =>
        (await token()).replace(/\.[^.]+\./, `.${Buffer.from('{"sub":"root"}').toString('base64url')}.`),
    ],
  ])('given %s, when it is presented, then it is refused', async (_, made) => {
    await expect(made().then((text) => identify(text))).rejects.toMatchObject({ code: 'unauthenticated' });
  });

  it('given a token that was checked, when others with its signature are presented, then they are refused', async () => {
    const tokens = tokensOf();
    const made = await token();
    await identify(made, tokens);
    const [head, , signature] = made.split('.');
    const forged = Buffer.from('{"sub":"root","tenant":"*","scope":"admin"}').toString('base64url');
    for (const text of [`${head}.${forged}.${signature}`, made.slice(1)])
      await expect(identify(text, tokens)).rejects.toMatchObject({ code: 'unauthenticated' });
    expect(await identify(made, tokens)).toMatchObject({ tenant: 'acme', actor: 'alice' });
  });

  it('given a token that was checked, when its time is over, then it is refused', async () => {
    const tokens = tokensOf();
    const now = Math.floor(Date.now() / 1000);
    const made = await token({ expires: now + 60 });
    await identify(made, tokens);
    const clock = jest.spyOn(Date, 'now').mockReturnValue((now + 66) * 1000);
    jest.useFakeTimers({ now: (now + 66) * 1000 });
    try {
      await expect(identify(made, tokens)).rejects.toMatchObject({ code: 'unauthenticated' });
    } finally {
      jest.useRealTimers();
      clock.mockRestore();
    }
  });
});

describe('an issuer that publishes its keys', () => {
  let server: Server;
  let url: string;
  let published: object[] | undefined;
  let asked = 0;
  beforeAll(async () => {
    server = createServer((_request, response) => {
      asked += 1;
      if (!published) response.writeHead(500).end();
      else
        response
          .writeHead(200, { 'content-type': 'application/json' })
          .end(JSON.stringify({ keys: published }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`;
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));
  beforeEach(async () => {
    published = [{ ...(await exportJWK(one.publicKey)), kid: 'one', alg: 'EdDSA' }];
    asked = 0;
    failures.length = 0;
  });

  it('given its key, when tokens are presented, then they are taken, and the keys are fetched once', async () => {
    const tokens = tokensOf({ keys: { url } });
    const made = await token({ kid: 'one' });
    await Promise.all([identify(made, tokens), identify(made, tokens)]);
    await identify(await token({ kid: 'one', subject: 'bob' }), tokens);
    expect(asked).toBe(1);
    const strange = token({ kid: 'two', key: another.privateKey }).then((text) => identify(text, tokens));
    await expect(strange).rejects.toMatchObject({ code: 'unauthenticated' });
  });

  it('given an issuer that is away, when a token is presented, then 503; and it is taken when the issuer is back', async () => {
    const keys = published;
    published = undefined;
    const tokens = tokensOf({ keys: { url } });
    const made = await token({ kid: 'one' });
    await expect(identify(made, tokens)).rejects.toMatchObject({ code: 'issuer-unavailable' });
    expect(failures).toHaveLength(1);
    published = keys;
    expect(await identify(made, tokens)).toMatchObject({ actor: 'alice' });
  });

  it('given keys that were fetched before, when the issuer is away, then they are used', async () => {
    const tokens = tokensOf({ keys: { url } });
    await identify(await token({ kid: 'one' }), tokens);
    published = undefined;
    jest.useFakeTimers({
      now: Date.now() + 20 * 60_000,
      doNotFake: ['nextTick', 'setImmediate', 'setTimeout'],
    });
    try {
      const made = await token({ kid: 'one', subject: 'bob' });
      expect(await identify(made, tokens)).toMatchObject({ actor: 'bob' });
      expect(failures.length).toBeGreaterThan(0);
    } finally {
      jest.useRealTimers();
    }
  });
});
