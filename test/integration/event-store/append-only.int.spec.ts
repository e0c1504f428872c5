import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { Nodes } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
beforeAll(async () => {
  db = await createTestDatabase();
  const store = await nodes.start(db.url);
  for (let index = 0; index < 40; index += 1) {
    await store.append(
      appendOf({ tenant: 'acme', streamId: `s${index}` }, 0, [{ type: 'Written', data: {} }]),
    );
  }
});
afterAll(async () => {
  await nodes.stopAll();
  await db.drop();
});

const INSERT = `insert into TABLE (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
  actor, correlation_id) select lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
  actor, correlation_id from TABLE order by position`;
const changes = {
  'an update': `update TABLE set type = 'Forged'`,
  'an update of no row': `update TABLE set type = 'Forged' where false`,
  'a delete': 'delete from TABLE',
  'a delete of no row': 'delete from TABLE where false',
  'a truncate': 'truncate TABLE',
  'a truncate that cascades': 'truncate TABLE cascade',
  'an insert that updates on conflict': `${INSERT} on conflict (lane, position) do update set type = 'Forged'`,
  'an insert that would update, of no row': `${INSERT} limit 0 on conflict (lane, position) do update set type = 'Forged'`,
  'a merge': `merge into TABLE e using (select 1) as one on e.type = 'Written' when matched then update set type = 'Forged'`,
  'a merge that deletes': `merge into TABLE e using (select 1) as one on true when matched then delete`,
};

describe.each(['origin', 'replica', 'local'])('given session_replication_role = %s', (role) => {
  it.each(Object.entries(changes))(
    'when %s is tried on the events or any partition of them, then the database refuses it',
    async (_, sql) => {
      const tables = await db.query<{ name: string }>(
        `select relid::regclass::text as name from pg_partition_tree('event')`,
      );
      expect(tables).toHaveLength(17);
      const events = 'select lane, position, type from event order by 1, 2';
      const before = await db.query(events);
      expect(before).toHaveLength(40);

      await db.query(`set session_replication_role = ${role}`);
      for (const { name } of tables) {
        const attempt = db.query(sql.replaceAll('TABLE', name));
        await expect(attempt).rejects.toMatchObject({ code: '42501' });
      }
      await db.query('reset session_replication_role');

      expect(await db.query(events)).toEqual(before);
    },
  );
});

it('given a role that has all default grants, when it tries to change events, then the database refuses it', async () => {
  const role = `writer_${Math.trunc(performance.now() * 1_000)}`;
  await db.query(`create role ${role}`);
  try {
    await db.query(`grant select, insert on all tables in schema public to ${role}`);
    await db.query(`set role ${role}`);
    for (const sql of Object.values(changes)) {
      await expect(db.query(sql.replaceAll('TABLE', 'event'))).rejects.toMatchObject({ code: '42501' });
    }
  } finally {
    await db.query('reset role');
    await db.query(`drop owned by ${role}`);
    await db.query(`drop role ${role}`);
  }
});
