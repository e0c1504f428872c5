import { type KeyStore, sha256Of } from '../../../src/access/key-store.js';
import { type ApiKey } from '../../../src/access/keys.schemas.js';
import { KnownKeys } from '../../../src/access/known-keys.js';

const KEY: ApiKey = {
  id: 'key_1',
  tenant: 'acme',
  name: 'app',
  scopes: ['generate'],
  createdAt: '2026-01-01T00:00:00.000Z',
  createdBy: 'root',
  expiresAt: null,
  revokedAt: null,
};

/** A table with one key, which counts what it is asked. */
function table() {
  const state = { isThere: true, isDown: false, asked: 0, now: 0, failures: [] as unknown[] };
  const store = {
    valid: (hashes: readonly Buffer[]) => {
      state.asked += 1;
      if (state.isDown) return Promise.reject(new Error('down'));
      const isKey = (hash: Buffer) => hash.equals(sha256Of('secret')) && state.isThere;
      return Promise.resolve(hashes.map((hash) => (isKey(hash) ? KEY : undefined)));
    },
  };
  const known = new KnownKeys(
    store as unknown as KeyStore,
    (error) => state.failures.push(error),
    () => state.now,
  );
  return { state, find: async (secret: string) => known.find(secret) };
}

describe('keys that are known', () => {
  it('given a key in use, when it is presented again, then the database is asked no more for two seconds', async () => {
    const { state, find } = table();
    expect(await find('secret')).toEqual(KEY);
    state.now = 1_999;
    expect(await find('secret')).toEqual(KEY);
    expect(state.asked).toBe(1);
    state.now = 2_001;
    expect(await find('secret')).toEqual(KEY);
    await new Promise(setImmediate);
    expect(state.asked).toBe(2);
  });

  it('given a key that was revoked, when it is presented, then it is refused within four seconds', async () => {
    const { state, find } = table();
    await find('secret');
    state.isThere = false;
    state.now = 3_999;
    // It is taken once more while it is being read again, and not after that.
    await find('secret');
    await new Promise(setImmediate);
    expect(await find('secret')).toBeUndefined();

    const idle = table();
    await idle.find('secret');
    idle.state.isThere = false;
    idle.state.now = 4_000;
    expect(await idle.find('secret')).toBeUndefined();
  });

  it('given a database that is away, when a key in use is presented, then it is taken for four seconds, and then an error says why not', async () => {
    const { state, find } = table();
    await find('secret');
    state.isDown = true;
    state.now = 3_000;
    expect(await find('secret')).toEqual(KEY);
    await new Promise(setImmediate);
    expect(state.failures).toHaveLength(1);
    state.now = 4_001;
    await expect(find('secret')).rejects.toThrow('down');
  });

  it('given a thousand unknown keys at once, when they are presented, then the database answers them by few statements', async () => {
    const { state, find } = table();
    const found = await Promise.all(Array.from({ length: 1_000 }, (_, index) => find(`guess ${index}`)));
    expect(found.every((one) => one === undefined)).toBe(true);
    expect(state.asked).toBeLessThan(10);
  });
});
