import { SESSIONS } from '../../../src/read-models/sessions.projection.js';
import { tenantUsage } from '../../../src/read-models/tenant-usage.js';
import { USAGE } from '../../../src/read-models/usage.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { Node } from '../projection-engine/fixture.js';

const TENANT = 'acme';
const MONTH = { from: '2026-01-01', to: '2026-01-31' };

let db: TestDatabase;
let node: Node;
beforeAll(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url);
  for (const [tenant, session, owner] of [
    [TENANT, 'a1', 'alice'],
    [TENANT, 'a2', 'alice'],
    [TENANT, 'b', 'bob'],
    [TENANT, 'nobodys', null],
    ['other', 'a1', 'alice'],
  ])
    await db.query(
      `insert into ${SESSIONS} (tenant, session_id, incarnation, version, status, owner, metadata, message_count, created_at,
         last_activity_at, lane, since, legal_hold, input_tokens, output_tokens, cached_tokens, reasoning_tokens, keys)
       values ($1, $2, 1, 1, 'deleted', $3, '{}', 0, now(), now(), 0, now(), false, 0, 0, 0, 0, '{}')`,
      [tenant, session, owner],
    );
  for (const [tenant, session, model, day, input] of [
    [TENANT, 'a1', 'large', '2025-12-31', 100_000],
    [TENANT, 'a1', 'large', '2026-01-01', 1],
    [TENANT, 'a2', 'large', '2026-01-01', 2],
    [TENANT, 'a2', 'small', '2026-01-01', 4],
    [TENANT, 'b', 'large', '2026-01-31', 8],
    [TENANT, 'nobodys', 'small', '2026-01-31', 16],
    [TENANT, 'b', 'large', '2026-02-01', 100_000],
    ['other', 'a1', 'large', '2026-01-01', 100_000],
  ])
    await db.query(
      `insert into ${USAGE} (tenant, session_id, model, day, generations, input_tokens, output_tokens, cached_tokens, reasoning_tokens)
       values ($1, $2, $3, $4, 1, $5, $5::bigint * 10, $5::bigint * 100, $5::bigint * 1000)`,
      [tenant, session, model, day, input],
    );
});
afterAll(async () => {
  await node.stop();
  await db.drop();
});

/** Rows as `day or owner, model, generations, input tokens`, where the other sums are multiples of the last one. */
async function usage(asked: { by: 'day' | 'owner'; owner?: string }): Promise<unknown[]> {
  const rows = await tenantUsage(node.models, 'eventual', TENANT, { ...MONTH, ...asked });
  return rows.map(({ day, owner, model, generations, inputTokens, ...more }) => {
    expect(more).toEqual({
      outputTokens: inputTokens * 10,
      cachedTokens: inputTokens * 100,
      reasoningTokens: inputTokens * 1000,
    });
    return [asked.by === 'day' ? day : owner, model, generations, inputTokens];
  });
}

describe('the usage of a tenant', () => {
  it('given sessions of owners and of nobody, when it is asked for by day, then each day of the period and model has its sum', async () => {
    expect(await usage({ by: 'day' })).toEqual([
      ['2026-01-01', 'large', 2, 3],
      ['2026-01-01', 'small', 1, 4],
      ['2026-01-31', 'large', 1, 8],
      ['2026-01-31', 'small', 1, 16],
    ]);
  });

  it('given the same, when it is asked for by owner, then those who used most come first', async () => {
    expect(await usage({ by: 'owner' })).toEqual([
      [null, 'small', 1, 16],
      ['bob', 'large', 1, 8],
      ['alice', 'small', 1, 4],
      ['alice', 'large', 2, 3],
    ]);
  });

  it('given an owner, when the usage of that one is asked for, then nothing of others is in it', async () => {
    expect(await usage({ by: 'day', owner: 'alice' })).toEqual([
      ['2026-01-01', 'large', 2, 3],
      ['2026-01-01', 'small', 1, 4],
    ]);
    expect(await usage({ by: 'owner', owner: 'carol' })).toEqual([]);
  });
});
