import { type EventLog } from '../../../src/event-store/log.js';
import { KeyMissing } from '../../../src/event-store/payload-codec.js';
import { Erased } from '../../../src/event-store/refusals.js';
import { masterKeyUse, rotateMasterKey } from '../../../src/event-store/sealing/master-key-use.js';
import { MasterKeyRefused, MasterKeys } from '../../../src/event-store/sealing/master-keys.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { masterKey } from '../../support/master-keys.js';
import { insist, settableDatabase } from '../../support/settable-database.js';
import { blocked, by, logPerTest, Nodes, StreamWriter, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});
const ONE = masterKey('one');
const TWO = masterKey('two');
const idOf = (key: string): string => new MasterKeys([key]).ids[0] ?? '';
const start = (masterKeys = [ONE], more = {}): Promise<EventLog> =>
  nodes.start(db.url, { masterKeys, ...more });
const stream = (streamId: string) => ({ tenant: 'acme', streamId });

/** By stream and incarnation: how many keys seal its events, its state included if it is of that incarnation. */
const keysOf = () =>
  db.query<{ stream: string; incarnation: number; keys: number }>(
    `select stream_id as stream, incarnation, count(distinct key_id)::int as keys
     from (select stream_id, incarnation, key_id from event
           union all select stream_id, incarnation, key_id from stream_state) as payload
     group by 1, 2 order by 1, 2`,
  );
const distinctKeys = async (): Promise<number> =>
  (await db.query('select distinct key_id from event')).length;
/** What nobody but the tests of erasure does. */
const destroy = (): Promise<unknown> =>
  db.query(
    'update data_key set wrapped = null, destroyed_at = colloquy_now() where id in (select key_id from event)',
  );

describe('keys of incarnations', () => {
  it('given two nodes that write streams in turn, then each incarnation has one key of its own, and both nodes read all', async () => {
    const [one, two] = [await start(), await start()];
    const incarnations = { incarnation: ({ version }: { version: number }) => (version <= 4 ? 1 : 2) };
    for (const name of ['a', 'b'])
      for (const [index, log] of [one, two, one, two, one, two].entries())
        await tallies(log, incarnations).handle(stream(name), { numbers: [index] }, by);

    expect(await keysOf()).toEqual(
      ['a', 'b'].flatMap((name) => [1, 2].map((incarnation) => ({ stream: name, incarnation, keys: 1 }))),
    );
    expect(await distinctKeys()).toBe(4);
    for (const log of [one, two, await start()])
      expect(await log.streams.read(stream('b'))).toMatchObject(
        [0, 1, 2, 3, 4, 5].map((number) => ({ data: { number } })),
      );
  });

  it('given two nodes that begin a stream at the same time, then one of them wins, and the key of the other one seals nothing', async () => {
    const logs = [await start(), await start()];
    const results = await Promise.all(
      logs.map((log) =>
        log.append(
          appendOf(stream('s'), 0, [{ type: 'Added', data: { number: 1 } }], {
            state: { version: 1, sum: 1, digest: 1 },
          }),
        ),
      ),
    );
    expect(results.map(({ status }) => status).sort()).toEqual(['conflict', 'ok']);

    for (const log of logs) await tallies(log).handle(stream('s'), { numbers: [2] }, by);
    expect(await keysOf()).toEqual([{ stream: 's', incarnation: 1, keys: 1 }]);
  });

  it('given a stream that this node has not read, when it appends to it, then it looks up the key once, also for appends at the same time', async () => {
    await tallies(await start()).handle(stream('s'), { numbers: [1] }, by);
    const log = await start();
    const asked = jest.spyOn(log.pool, 'connect');
    const append = (version: number) =>
      log.append(
        appendOf(stream('s'), version, [{ type: 'Added', data: { number: 2 } }], {
          begins: false,
          state: { version: version + 1 },
        }),
      );
    await Promise.all([append(1), append(1), append(1)]);
    expect(asked).toHaveBeenCalledTimes(1);
    await append(2);
    expect(asked).toHaveBeenCalledTimes(1);
    expect(await keysOf()).toEqual([{ stream: 's', incarnation: 1, keys: 1 }]);
  });

  it('given a stock of keys, when streams begin and go on, then their appends ask the database for nothing else', async () => {
    const log = await start();
    await new StreamWriter(log, stream('first')).append();
    const asked = jest.spyOn(log.pool, 'connect');
    for (let index = 0; index < 30; index += 1) {
      const writer = new StreamWriter(log, stream(`s${index}`));
      expect([await writer.append(3), await writer.append(2)]).toEqual(['ok', 'ok']);
    }
    expect(asked).not.toHaveBeenCalled();
    expect(await distinctKeys()).toBe(31);
    expect(await db.query('select count(*)::int from data_key')).toEqual([{ count: 65 }]);
  });

  it('given more streams that begin at the same time than there are keys, then all are written, each with a key of its own', async () => {
    const log = await start();
    const results = await Promise.all(
      Array.from({ length: 300 }, (_, index) => new StreamWriter(log, stream(`s${index}`)).append()),
    );
    expect(new Set(results)).toEqual(new Set(['ok']));
    expect(await distinctKeys()).toBe(300);
  });

  it('given a plain stream, when a master key is set, then it goes on sealed, and both kinds are read; and plain again when it is so set', async () => {
    await tallies(await nodes.start(db.url)).handle(stream('s'), { numbers: [1, 2] }, by);
    await tallies(await start()).handle(stream('s'), { numbers: [3, 4] }, by);
    const log = await start(['plain', ONE]);
    expect((await tallies(log).handle(stream('s'), { numbers: [5] }, by)).state).toMatchObject({ sum: 15 });
    expect(await db.query('select sealed is not null as sealed from event order by version')).toEqual(
      [false, false, true, true, false].map((sealed) => ({ sealed })),
    );
    expect(await log.streams.read(stream('s'))).toHaveLength(5);
  });
});

describe('keys that are gone', () => {
  it('given a key that was destroyed, then a node that holds it reads on for less than a minute, and says then what happened', async () => {
    let now = 1_000_000;
    const log = await start([ONE], { keyClock: () => now });
    await tallies(log).handle(stream('s'), { numbers: [1] }, by);
    await tallies(log).handle(stream('t'), { numbers: [1] }, by);
    const [kept] = await db.query<{ key_id: string }>(`select key_id from event where stream_id = 't'`);
    await db.query(
      `update data_key set wrapped = null, destroyed_at = colloquy_now() where id in (select key_id from event) and id <> $1`,
      [kept?.key_id],
    );

    now += 59_999;
    expect(await log.streams.read(stream('s'))).toHaveLength(1);
    now += 1;
    await expect(log.streams.read(stream('s'))).rejects.toThrow(Erased);
    await expect(log.streams.load(stream('s'))).rejects.toThrow(
      'acme/s at version 1 cannot be read any more',
    );
    expect(await log.streams.read(stream('t'))).toHaveLength(1);
    const read = await log.lanes.read(new Map([[log.laneOf(stream('s')), 0]]), 10);
    expect(read.find(({ streamId }) => streamId === 's')).toMatchObject({ data: null, erased: true });
  });

  it('given a key that a node remembers, when it was destroyed elsewhere, then whoever asks for it outside is told so at once; and nobody gets it from a log that the tenant has left', async () => {
    const log = await start();
    await tallies(log).handle(stream('s'), { numbers: [1] }, by);
    const [row] = await db.query<{ id: string }>('select key_id::text as id from event');
    const event = { ...stream('s'), version: 1, keyId: row?.id ?? '' };
    expect(await log.keyOfEvent(event)).toHaveLength(32);
    expect(await log.keyOfEvent({ ...event, version: 2 })).toBeUndefined();
    expect(await log.keyOfEvent({ ...event, tenant: 'other' })).toBeUndefined();
    const absence = await log.absences.begin('acme');
    expect(await log.keyOfEvent(event)).toBeUndefined();
    await log.absences.reopen(absence);
    await destroy();
    // The node itself reads on, for less than a minute: a consumer that kept such a key would add its own minute to that.
    expect(await log.streams.read(stream('s'))).toMatchObject([{ data: { number: 1 } }]);
    expect(await log.keyOfEvent(event)).toBeNull();
  });

  it('given keys in use, when the node confirms them, then it goes on with them without asking, but not with one that was destroyed', async () => {
    let now = 1_000_000;
    const log = await start([ONE], { keyClock: () => now });
    for (const name of ['s', 't']) await tallies(log).handle(stream(name), { numbers: [1] }, by);
    await db.query(
      `update data_key set wrapped = null, destroyed_at = colloquy_now() where id = (select key_id from event where stream_id = 's')`,
    );
    now += 50_000;
    await log['dataKeys']?.confirm();
    await expect(log.streams.read(stream('s'))).rejects.toThrow(Erased);
    now += 50_000;
    const asked = jest.spyOn(log['dataKeys'] as unknown as { ask: () => unknown }, 'ask');
    expect(await log.streams.read(stream('t'))).toHaveLength(1);
    expect(asked).not.toHaveBeenCalled();
  });

  it('given an event whose key the database does not have, then that event alone cannot be read, and a snapshot like that is not used', async () => {
    const log = await start();
    const sums = tallies(log, { snapshotEvery: 2 });
    for (const number of [1, 2, 3]) await sums.handle(stream('s'), { numbers: [number] }, by);
    expect(await sums.stateAt(stream('s'), 3)).toMatchObject({ sum: 6 });
    await db.query('update stream_snapshot set key_id = gen_random_uuid()');
    expect(await tallies(log, { snapshotEvery: 2 }).stateAt(stream('s'), 3)).toMatchObject({ sum: 6 });
    await db.query(`
      insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                         actor, correlation_id, sealed, key_id)
      select lane, position + 1, tenant, stream_id, version + 1, incarnation, gen_random_uuid(), type, schema_version,
             time, actor, correlation_id, sealed, gen_random_uuid()
      from event where version = 3`);
    await expect(log.streams.read(stream('s'))).rejects.toThrow(KeyMissing);
    expect(await log.streams.read(stream('s'), { to: 3 })).toHaveLength(3);
  });

  it('given a destroyed key, when somebody writes for its incarnation nevertheless, then nobody can read that either', async () => {
    await tallies(await start()).handle(stream('s'), { numbers: [1] }, by);
    await destroy();
    const log = await start();
    const append = appendOf(stream('s'), 1, [{ type: 'Added', data: { number: 2 } }], { begins: false });
    expect(await log.append(append)).toMatchObject({ status: 'ok' });
    expect(await log.streams.read(stream('s'), { from: 2, erasedToo: true })).toMatchObject([
      { data: null, erased: true },
    ]);
    expect(
      await db.query('select from data_key where wrapped is not null and id in (select key_id from event)'),
    ).toEqual([]);
  });

  it.each([
    'delete from data_key',
    'truncate data_key',
    'update data_key set id = gen_random_uuid()',
    `update data_key set wrapped = '\\x00', destroyed_at = null where wrapped is null`,
  ])('given keys, when somebody tries "%s", then the database refuses', async (statement) => {
    await tallies(await start()).handle(stream('s'), { numbers: [1] }, by);
    await destroy();
    await expect(db.query(statement)).rejects.toMatchObject({ code: '42501' });
  });
});

describe('master keys', () => {
  it('given a log that is sealed, when it is opened with another master key or with none, then it is refused and nothing is written', async () => {
    await tallies(await start()).handle(stream('s'), { numbers: [1] }, by);
    const before = await db.query('select * from data_key order by id');
    for (const keys of [[TWO], [], ['plain', TWO]]) {
      const opened = nodes.start(db.url, { masterKeys: keys });
      await expect(opened).rejects.toThrow(MasterKeyRefused);
      await expect(opened).rejects.toThrow(idOf(ONE));
    }
    expect(await db.query('select * from data_key order by id')).toEqual(before);
    expect(await (await start([TWO, ONE])).streams.read(stream('s'))).toHaveLength(1);
  });

  it('given a node whose settings have not got the new master key yet, when it reads what is sealed with it, then that is no fault of an event', async () => {
    const former = await start();
    await tallies(await start([TWO, ONE])).handle(stream('s'), { numbers: [1] }, by);
    await expect(former.lanes.read(new Map([[former.laneOf(stream('s')), 0]]), 10)).rejects.toThrow(
      MasterKeyRefused,
    );
  });

  it('given nodes that run, when the master key is exchanged, then they go on, and afterwards the former key is of no use', async () => {
    const [former, next] = [await start([ONE, TWO]), await start([TWO, ONE])];
    for (const [log, name] of [
      [former, 'a'],
      [next, 'b'],
      [next, 'erased'],
    ] as const)
      await new StreamWriter(log, stream(name)).append();
    await db.query(
      `update data_key set wrapped = null, destroyed_at = colloquy_now()
       where id = (select key_id from event where stream_id = 'erased')`,
    );
    const masters = new MasterKeys([TWO, ONE]);
    expect(await masterKeyUse(former.pool)).toHaveLength(2);
    // The stock of the former node: the key of its stream, and 64 that seal nothing yet.
    expect(await rotateMasterKey(former.pool, masters)).toBe(65);
    expect(await masterKeyUse(former.pool)).toEqual([{ master: idOf(TWO), dataKeys: 129 }]);
    expect(await rotateMasterKey(former.pool, masters)).toBe(0);
    for (const log of [former, next, await start([TWO, ONE]), await start([TWO])])
      for (const name of ['a', 'b']) expect(await log.streams.read(stream(name))).toHaveLength(1);
    await expect((await start([TWO])).streams.read(stream('erased'))).rejects.toThrow(Erased);
    await expect(start([ONE])).rejects.toThrow(MasterKeyRefused);
  });

  it('given a rotation that is broken off between two pages, when it is begun again, then it wraps the rest', async () => {
    const log = await start();
    await new StreamWriter(log, stream('s')).append();
    await db.query(
      `insert into data_key (id, master, wrapped) select gen_random_uuid(), 'none', '\\x00' from generate_series(1, 3)`,
    );
    await expect(rotateMasterKey(log.pool, new MasterKeys([TWO, ONE]))).rejects.toThrow('none');
    await db.query(`update data_key set wrapped = null, destroyed_at = colloquy_now() where master = 'none'`);
    // 2 500 keys: three pages.
    const many = await start();
    await Promise.all(
      Array.from({ length: 800 }, (_, index) => new StreamWriter(many, stream(`m${index}`)).append()),
    );
    const [{ count } = { count: 0 }] = await db.query<{ count: number }>(
      'select count(*)::int from data_key where wrapped is not null',
    );
    expect(count).toBeGreaterThan(1_000);
    const broken = rotateMasterKey(log.pool, new MasterKeys([TWO, ONE]), () => {
      throw new Error('killed');
    });
    await expect(broken).rejects.toThrow('killed');
    expect(await masterKeyUse(log.pool)).toHaveLength(2);
    expect(await rotateMasterKey(log.pool, new MasterKeys([TWO, ONE]))).toBe(count - 1_000);
    expect(await masterKeyUse(log.pool)).toEqual([{ master: idOf(TWO), dataKeys: count }]);
    expect(await (await start([TWO])).streams.read(stream('m799'))).toHaveLength(1);
  });

  it('given a wrapped key that was put in the place of another one, when it is needed, then it does not open', async () => {
    const log = await start();
    for (const name of ['s', 't']) await new StreamWriter(log, stream(name)).append();
    await db.query(
      `update data_key k set wrapped = o.wrapped from data_key o
       where k.id = (select key_id from event where stream_id = 's')
         and o.id = (select key_id from event where stream_id = 't')`,
    );
    await expect((await start()).streams.read(stream('s'))).rejects.toThrow(MasterKeyRefused);
  });
});

describe('a log that is set back', () => {
  const other = new Nodes();
  const ends: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    await other.stopAll();
    for (const end of ends.splice(0).reverse()) await end();
  });
  const events = (log: EventLog, name: string) => insist(() => log.streams.read(stream(name)));

  it('given keys that are gone with the end of the log, when a node that holds them goes on, then it seals nothing with them', async () => {
    const database = await settableDatabase(ends);
    const one = await other.start(database.url, { masterKeys: [ONE] });
    const kept = tallies(one);
    await kept.handle(stream('before'), { numbers: [1] }, by);
    await database.keep();
    // These keys, and the stock that the node makes for them, are in the part that is lost.
    await insist(() => kept.handle(stream('before'), { numbers: [2] }, by));
    await Promise.all(
      Array.from({ length: 80 }, (_, index) =>
        insist(() => tallies(one).handle(stream(`lost${index}`), { numbers: [1] }, by)),
      ),
    );
    await database.setBack();

    // The first of them are decided and encoded before the node notices.
    await Promise.all([
      insist(() => kept.handle(stream('before'), { numbers: [3] }, by)),
      ...Array.from({ length: 80 }, (_, index) =>
        insist(() => kept.handle(stream(`new${index}`), { numbers: [index] }, by)),
      ),
      ...Array.from({ length: 10 }, (_, index) =>
        insist(() => kept.handle(stream(`lost${index}`), { numbers: [9] }, by)),
      ),
    ]);
    expect(one.generations.current).toBe(2);
    const fresh = await other.start(database.url, { masterKeys: [ONE] });
    expect(await events(fresh, 'before')).toMatchObject([{ data: { number: 1 } }, { data: { number: 3 } }]);
    for (let index = 0; index < 80; index += 1) expect(await events(fresh, `new${index}`)).toHaveLength(1);
    for (let index = 0; index < 10; index += 1)
      expect(await events(fresh, `lost${index}`)).toMatchObject([{ data: { number: 9 } }]);
  }, 60_000);

  it('given an append that does not say of which generation it is, when it was encoded before the log was set back, then it is refused', async () => {
    const database = await settableDatabase(ends);
    const one = await other.start(database.url, { masterKeys: [ONE] });
    await new StreamWriter(one, stream('kept')).append();
    await database.keep();
    await insist(() => new StreamWriter(one, stream('gone')).append());
    const { writer } = one as unknown as { writer: { append: (append: unknown) => Promise<unknown> } };
    const append = writer.append.bind(writer);
    jest.spyOn(writer, 'append').mockImplementationOnce(async (encoded) => {
      await database.setBack();
      return append(encoded);
    });
    const request = appendOf(stream('s'), 0, [{ type: 'Written', data: {} }]);
    expect(await one.append(request)).toMatchObject({ status: 'conflict' });
    // Decided anew, it is encoded anew.
    expect(await one.append(request)).toMatchObject({ status: 'ok' });
    const fresh = await other.start(database.url, { masterKeys: [ONE] });
    expect(await fresh.streams.read(stream('s'))).toMatchObject([{ data: {} }]);
  }, 60_000);

  it('given keys that are being made, when everything is forgotten meanwhile, then they are not used', async () => {
    const log = await start();
    await db.query('begin');
    await db.query('lock table data_key in share mode');
    const appended = new StreamWriter(log, stream('s')).append();
    await blocked(db, 1, { locktype: 'relation' });
    log['dataKeys']?.forget();
    await db.query('commit');
    expect(await appended).toBe('ok');
    // Once for each time, and one of the second ones is in use.
    expect(await db.query('select count(*)::int from data_key')).toEqual([{ count: 130 }]);
  });

  it('given a connection to the former server, when keys are made or looked up over it, then they are not used', async () => {
    const database = await settableDatabase(ends);
    const one = await other.start(database.url, { masterKeys: [ONE] });
    await new StreamWriter(one, stream('s')).append();
    await database.keep();
    await insist(() => new StreamWriter(one, stream('s2')).append());
    const former = await database.setBack();
    const zombie = await other.start(former, { masterKeys: [ONE] }).catch(() => undefined);
    await insist(() => one.streams.versions([stream('s')]));
    expect(one.generations.current).toBe(2);
    if (!zombie) throw new Error('the former database is there still');
    // As if a pooled connection led there still.
    const connect = one.pool.connect.bind(one.pool) as () => Promise<unknown>;
    let led = 0;
    jest.spyOn(one.pool, 'connect').mockImplementation((() => {
      led += 1;
      return led <= 3 ? zombie.pool.connect() : connect();
    }) as never);
    expect(
      await one.append({ ...appendOf(stream('s3'), 0, [{ type: 'Written', data: { text: 'here' } }]) }),
    ).toMatchObject({ status: 'ok' });
    expect(led).toBeGreaterThan(3);
    const fresh = await other.start(database.url, { masterKeys: [ONE] });
    expect(await fresh.streams.read(stream('s3'))).toMatchObject([{ data: { text: 'here' } }]);
  }, 60_000);
});
