import { randomUUID } from 'node:crypto';
import { Client } from 'pg';
import { grant } from '../../../src/database/grant.js';
import { migrations, rights } from '../../../src/migrations.js';
import { migrate } from '../../../src/database/migrate.js';
import { TenantAbsent } from '../../../src/event-store/absences.js';
import { EventLog } from '../../../src/event-store/log.js';
import { appendOf } from '../../support/append.js';
import { masterKey } from '../../support/master-keys.js';
import { apiOf } from '../../support/http.js';
import { colloquy } from '../../support/colloquy.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { startService } from '../../support/process.js';

let db: TestDatabase;
let role: string;
let url: string;
beforeEach(async () => {
  db = await createTestDatabase();
  role = `service_${randomUUID().replaceAll('-', '')}`;
  await db.query(`create role ${role} login password 'secret'`);
  const address = new URL(db.url);
  address.username = role;
  address.password = 'secret';
  url = address.href;
});
afterEach(async () => {
  await db.query(`drop owned by ${role}`).catch(() => undefined);
  await db.query(`drop role ${role}`).catch(() => undefined);
  await db.drop();
});

async function asRole<T>(work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

describe('a role that cannot change the log', () => {
  it('given the tables of a migrated database, then each is named among the rights', async () => {
    const rows = await db.query<{ name: string }>(
      `select c.oid::regclass::text as name from pg_class c
       where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p') and not c.relispartition`,
    );
    expect(rows.map(({ name }) => name).sort()).toEqual(Object.keys(rights.tables).sort());
  });

  it('given the grants, when the service runs as that role, then it does all that it does, and read models that were there go on', async () => {
    // Given read models that another role has made.
    const before = await startService({ env: { DATABASE_URL: db.url } });
    await apiOf(before.url).post('/v1/chat', { message: 'hello', sessionId: 'old' });
    await before.stop();
    await grant(db.url, role, rights);
    const sealed = { DATABASE_URL: url, COLLOQUY_MASTER_KEY: masterKey('one') };
    const service = await startService({ env: sealed });
    try {
      const api = apiOf(service.url);
      expect((await api.get('/v1/sessions/old/messages')).body).toMatchObject({ data: [{}, {}] });
      expect((await api.post('/v1/chat', { message: 'hello', sessionId: 'new' })).status).toBe(200);
      expect((await api.get('/v1/sessions')).body).toMatchObject({ data: [{ id: 'old' }, { id: 'new' }] });
      expect((await api.get('/v1/search?q=hello')).status).toBe(200);
      expect((await api.delete('/v1/sessions/old')).status).toBe(204);
      for (const path of ['/v1/admin/projections/sessions/rebuild', '/v1/admin/projections/sessions/verify'])
        expect((await api.post(path)).status).toBeLessThan(300);
      expect((await api.post('/v1/admin/sweep')).status).toBe(200);
      expect((await api.post('/v1/admin/keys', { tenant: 'acme', name: 'app' })).status).toBe(201);
      expect((await api.post('/v1/sessions/new/erase')).status).toBe(200);
      const exchanged = { ...sealed, COLLOQUY_MASTER_KEY: `${masterKey('two')},${masterKey('one')}` };
      expect(await colloquy(['master-key', 'rotate'], { env: exchanged })).toMatchObject({ code: 0 });
    } finally {
      await service.stop();
    }
  }, 60_000);

  it.each([
    `update event set data = '{}'`,
    `delete from event`,
    `truncate event`,
    `truncate event_lane_0`,
    `delete from event_lane_0`,
    `alter table event disable trigger all`,
    `alter table event_lane_0 disable trigger refuse_change`,
    `drop table event`,
    `drop trigger refuse_change on event`,
    `drop function refuse_change() cascade`,
    `create or replace function refuse_change() returns trigger language plpgsql as 'begin return null; end'`,
    `create or replace function colloquy_now() returns timestamptz language sql as 'select now()'`,
    `alter table event owner to current_user`,
    `update log_settings set lanes = 1`,
    `delete from migration`,
    `delete from api_key`,
    `delete from data_key`,
    `truncate data_key`,
    `update data_key set id = gen_random_uuid()`,
    `drop trigger guard_delete on data_key`,
    `insert into tenant_absence (tenant, closed) values ('acme', '{}')`,
    `update tenant_absence set departed = false`,
    `select guard_absences(); drop trigger refuse_absent on event`,
  ])('given the grants, when the role tries "%s", then PostgreSQL refuses', async (statement) => {
    await grant(db.url, role, rights);
    await expect(asRole((client) => client.query(statement))).rejects.toMatchObject({ code: '42501' });
  });

  it('given the grants, when the role makes a tenant absent, then it can, and the tenant has no events until it is back', async () => {
    await grant(db.url, role, rights);
    const store = await EventLog.open(url);
    const append = () =>
      store.append(appendOf({ tenant: 'acme', streamId: 's' }, 0, [{ type: 'Written', data: {} }]));
    try {
      const number = await store.absences.begin('acme');
      await expect(append()).rejects.toThrow(TenantAbsent);
      expect(await store.absences.depart(number)).toBe(true);
      expect(await store.absences.reopen(number)).toBe(false);
      expect(await store.absences.arrive(number, 1)).toBe(true);
      expect((await append()).status).toBe('ok');
    } finally {
      await store.close();
    }
    await db.query('delete from counter');
  });

  it('given the grants in two cells, when a tenant is moved as that role, then all of it arrives', async () => {
    const other = await createTestDatabase();
    try {
      await other.query(`update log_settings set position_key = decode(md5(current_database()), 'hex')`);
      await db.query(`insert into tenant_cell (tenant, cell) values ('acme', 'default')`);
      for (const one of [db, other]) await grant(one.url, role, rights);
      const store = await EventLog.open(db.url);
      await store.append(appendOf({ tenant: 'acme', streamId: 's' }, 0, [{ type: 'Written', data: {} }]));
      await store.close();
      const there = new URL(url);
      there.pathname = new URL(other.url).pathname;
      const env = { DATABASE_URL: url, DATABASE_CELLS: `two=${there.href}` };
      expect(await colloquy(['tenants', 'move', 'acme', 'two'], { env })).toMatchObject({
        code: 0,
        out: expect.stringContaining('"events":1') as string,
      });
      expect(await other.query('select stream_id from event')).toEqual([{ stream_id: 's' }]);
    } finally {
      await other.query(`drop owned by ${role}`).catch(() => undefined);
      await other.drop();
    }
  }, 60_000);

  it('given a database that is not migrated, when the role would have to, then the error says who must', async () => {
    await grant(db.url, role, rights);
    await db.query('update migration set sha256 = null where name like $1', ['%api-keys%']);
    await expect(migrate(url, migrations)).rejects.toThrow(/colloquy migrate as the owner/);
  });

  it('given no such role, when it is granted, then the error says so', async () => {
    await expect(grant(db.url, 'nobody', rights)).rejects.toThrow(/there is no role nobody/);
  });
});
