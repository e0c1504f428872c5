import { mkdtemp, readdir, rm, symlink, mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DataFolderInUseError, lockDataFolder } from '../../../src/embedded-postgres/data-folder-lock.js';
import { ownProcesses } from '../../support/own-process.js';

const url = 'http://127.0.0.1:3000';

describe('the lock of a data folder', () => {
  let dataDir: string;

  beforeEach(async () => {
    dataDir = join(await mkdtemp(join(tmpdir(), 'colloquy lock ')), 'data');
  });

  afterEach(async () => {
    await rm(join(dataDir, '..'), { recursive: true, force: true });
  });

  it('given a holder, when another process tries to take the lock, then the error names the holder and says what to do', async () => {
    const lock = await lockDataFolder(dataDir, { url });

    const refusal = await lockDataFolder(dataDir, { url: 'http://127.0.0.1:4000' }).catch(
      (error: unknown) => error,
    );

    expect(refusal).toBeInstanceOf(DataFolderInUseError);
    expect(refusal).toMatchObject({ pid: process.pid, url });
    expect(String(refusal)).toContain(`process ${process.pid} at ${url}`);
    expect(String(refusal)).toContain('COLLOQUY_DATA_DIR');
    await lock.release();
  });

  it('given a released lock, when it is taken again and again, then it is free each time and no files pile up', async () => {
    for (let round = 0; round < 5; round++) {
      const lock = await lockDataFolder(dataDir, { url });
      await lock.release();
    }

    expect(await readdir(join(dataDir, 'lock'))).toHaveLength(1);
  });

  it('given a lock whose pid now belongs to another program, when it is taken, then it is free', async () => {
    await mkdir(join(dataDir, 'lock'), { recursive: true });
    const holder = JSON.stringify({ pid: process.pid, born: 'long ago', url });
    await symlink(holder, join(dataDir, 'lock', '7'));

    const lock = await lockDataFolder(dataDir, { url });

    expect(await readdir(join(dataDir, 'lock'))).toEqual(['8']);
    await lock.release();
  });

  it('given a holder that is killed with -9, when 20 processes try to take the lock at once, then one gets it and the others name that one', async () => {
    await using processes = ownProcesses('src/embedded-postgres/data-folder-lock.ts');
    const script = `
      const readable = () => new Promise((resolve) => process.stdin.once('readable', resolve));
      say('ready');
      await readable();
      await module.lockDataFolder(args[0], { url: 'http://127.0.0.1:' + process.pid }).then(
        () => say('won'),
        (error) => say(error instanceof module.DataFolderInUseError ? String(error.pid) : String(error)),
      );
      setInterval(() => undefined, 1000);`;
    const holder = processes.start(script, dataDir);
    await holder.line();
    holder.child.stdin?.write('go');
    expect(await holder.line()).toBe('won');

    const crowd = Array.from({ length: 20 }, () => processes.start(script, dataDir));
    await Promise.all(crowd.map((own) => own.line()));
    await holder.kill9();
    for (const own of crowd) own.child.stdin?.write('go');
    const answers = await Promise.all(
      crowd.map(async (own) => ({ pid: own.child.pid, said: await own.line() })),
    );

    const winners = answers.filter(({ said }) => said === 'won');
    expect(winners).toHaveLength(1);
    const losers = answers.filter(({ said }) => said !== 'won').map(({ said }) => said);
    expect(new Set(losers)).toEqual(new Set([String(winners[0]?.pid)]));
    expect(await readdir(join(dataDir, 'lock'))).toHaveLength(1);
  }, 60_000);
});
