import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { type FakeOpenAi, startFakeOpenAi } from '../support/fake-openai.js';
import { eventually } from '../support/http.js';
import { alive, processesOn } from '../support/processes.js';
import { type Application, createApplication, SEED_IMPORT, snippet } from '../support/seed-programs.js';
import { heavy } from '../support/heavy.js';

// Each test runs programs, each with a PostgreSQL of its own, which takes longer than Jest's default limit.
jest.setTimeout(60_000);

const PROGRAM = `
  import { Agent } from 'colloquy';
  const agent = new Agent();
  await agent.start();
  await agent.createSession('kept');
  await agent.generate('Hello', { sessionId: 'kept' });
  const history = await agent.getSessionHistory('kept');
  console.log('messages:', history.length);
`;
const WAIT = 'setInterval(() => undefined, 1000);';
const LOCAL = `import { Agent as DextoAgent } from 'colloquy';\n`;
const BASICS = snippet('Creating a Session') + snippet('Using Sessions');

describe('a program that runs the service inside itself and never stops it', () => {
  let application: Application;
  const started: ChildProcess[] = [];
  beforeEach(() => {
    application = createApplication();
  });
  afterEach(async () => {
    for (const child of started.splice(0)) child.kill('SIGKILL');
    // The PostgreSQL server ends with its owner, and works on the folder until then.
    await eventually(async () => (await alive(await processesOn(application.folder))).length === 0);
    application.remove();
  });

  /**
   * Starts a program in a process group of its own, as a shell does. Resolves when the program has printed something or
   * has ended.
   */
  async function start(file: string, env: Record<string, string> = {}): Promise<ChildProcess> {
    const child = spawn(process.execPath, [file], {
      cwd: application.folder,
      env: { PATH: process.env['PATH'], HOME: application.folder, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    started.push(child);
    let output = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    const said = new Promise<void>((resolve) =>
      child.stdout.once('data', () => {
        resolve();
      }),
    );
    await Promise.race([said, once(child, 'exit')]);
    outputs.set(child, () => output);
    return child;
  }
  const outputs = new WeakMap<ChildProcess, () => string>();

  heavy.each<[string, string, (child: ChildProcess) => void]>([
    ['has nothing more to do', '', () => undefined],
    ['calls process.exit', 'process.exit(0);', () => undefined],
    ['throws', `throw new Error('nobody catches this');`, () => undefined],
    ['gets SIGTERM', WAIT, (child) => child.kill('SIGTERM')],
    ['gets Ctrl-C, as its whole process group does', WAIT, ({ pid = 0 }) => process.kill(-pid, 'SIGINT')],
    ['gets SIGKILL', WAIT, (child) => child.kill('SIGKILL')],
  ])(
    'given a program that %s, when it has ended, then none of its processes is left, and the next start finds the data',
    async (_, ending, end) => {
      application.write('program.mjs', PROGRAM + ending);
      const child = await start('program.mjs');
      const server = await processesOn(application.folder);

      end(child);
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');

      await eventually(async () => (await alive(server)).length === 0, 5_000);
      const next = await start('program.mjs');
      expect(outputs.get(next)?.()).toContain('messages: 4');
    },
  );

  it('given the unchanged program of the guide, when it has finished, then it ends by itself and leaves no process', async () => {
    const model: FakeOpenAi = await startFakeOpenAi();
    try {
      application.writeProgram('guide.mjs', BASICS.replace(SEED_IMPORT, LOCAL));

      const child = await start('guide.mjs', {
        OPENAI_API_KEY: 'sk-of-the-model',
        OPENAI_BASE_URL: model.url,
      });
      if (child.exitCode === null) await once(child, 'exit');

      expect({ code: child.exitCode, output: outputs.get(child)?.() }).toMatchObject({ code: 0 });
      await eventually(async () => (await alive(await processesOn(application.folder))).length === 0);
    } finally {
      await model.close();
    }
  });
});
