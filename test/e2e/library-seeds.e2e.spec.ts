import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { type FakeOpenAi, says, startFakeOpenAi } from '../support/fake-openai.js';
import { type RunningService, startService } from '../support/process.js';
import { heavy } from '../support/heavy.js';
import { type Application, createApplication, SEED_IMPORT, snippet } from '../support/seed-programs.js';

const ROOT = join(__dirname, '../..');
const LOCAL = `import { Agent as DextoAgent } from 'colloquy';\n`;
const REMOTE = `import { DextoAgent } from './remote.mjs';\n`;
/** The same class, for the service at COLLOQUY_URL. */
const REMOTE_MODULE = `import { Agent } from 'colloquy';
export class DextoAgent extends Agent {
  constructor(options) { super({ ...options, url: process.env.COLLOQUY_URL, apiKey: process.env.COLLOQUY_KEY }); }
}`;
const KEY = 'a-key-of-the-service';

const BASICS = snippet('Creating a Session');
const USING = snippet('Using Sessions');
const CHAT_BOT = snippet('Basic Multi-User Chat');
const SERVER = snippet('Web Application Pattern');
const CLIENT = snippet('Web Application Pattern', 1);
const WITH_TTL = snippet('Automatic Cleanup');
const STORAGE = snippet('Persistent Storage');
const RESUME = snippet('Resuming Conversations');
/** The beginning that the shorter examples omit. */
const AGENT = BASICS.slice(0, BASICS.indexOf('// Create a session with auto'));
const STOP = '\nawait agent.stop();\n';

const PROGRAMS = {
  basics: `${BASICS}${USING}
    console.log(response.content, '/', followUp.content);${STOP}`,
  chatBot: `${SEED_IMPORT}${CHAT_BOT}
    console.log([response1, response2, response3].join(' / '));
    await bot.resetUser('alice');
    console.log((await bot['agent'].getSessionHistory('user-alice')).length);
    await bot['agent'].stop();`,
  management: `${AGENT}
    await agent.createSession('user-123');
    await agent.generate('What is TypeScript?', { sessionId: 'user-123' });
    {${snippet('List All Sessions')}}
    {${snippet('Get Session Details')}}
    {${snippet('Get Conversation History')}}
    console.log(await agent.getSessionMetadata('user-123').then((found) => found?.messageCount));
    {${snippet('Reset a Session')}}
    {${snippet('Get Conversation History')}}
    {${snippet('Delete a Session')}}
    {${snippet('Get Session Details')}}
    await agent.deleteSession('user-123');${STOP}`,
  lifecycle: `${SEED_IMPORT}${WITH_TTL}
    await agent.start();
    ${RESUME}
    await agent.generate('Hi', { sessionId });
    const again = await resumeOrCreate(agent, '123');
    console.log(again.sessionId, again.history.length);${STOP}`,
  storage: `${SEED_IMPORT}${STORAGE}
    await agent.start();
    console.log((await agent.createSession()).status);${STOP}
    await agent.start();
    await agent.start();${STOP}`,
  practices: `${AGENT}
    ${snippet('1\\. Use Meaningful Session IDs')}
    const cleanUp: (() => Promise<void>)[] = [];
    const setInterval = (task: () => Promise<void>, ms: number) => { cleanUp.push(task); console.log(ms); };
    ${snippet('2\\. Clean Up Old Sessions')}
    for (const task of cleanUp) await task();
    ${snippet('3\\. Handle Missing Sessions Gracefully')}
    console.log((await chat('Hello?', 'gone')).content);
    console.log((await chat('Still there?', 'gone')).content);${STOP}`,
};
type Name = keyof typeof PROGRAMS;

// Each test runs programs, each with a service and some with a PostgreSQL, which takes longer than Jest's default
// limit.
jest.setTimeout(60_000);

describe('the programs of the seeds', () => {
  let model: FakeOpenAi;
  let database: TestDatabase;
  let service: RunningService;
  let application: Application;

  beforeAll(async () => {
    model = await startFakeOpenAi();
    model.beStrict();
    database = await createTestDatabase();
    application = createApplication(['express']);
    application.write('remote.mjs', REMOTE_MODULE);
  });
  afterAll(async () => {
    application.remove();
    await model.close();
    await database.drop();
  });
  afterEach(() => {
    expect(model.faults).toEqual([]);
  });

  interface Mode {
    readonly name: string;
    readonly line: string;
    env(): Promise<Record<string, string>>;
    over(): Promise<void>;
  }
  let own: TestDatabase;
  const modes: Mode[] = [
    {
      name: 'in one process with the service',
      line: LOCAL,
      env: async () => {
        own = await createTestDatabase();
        return { OPENAI_API_KEY: 'sk-of-the-model', OPENAI_BASE_URL: model.url, DATABASE_URL: own.url };
      },
      over: () => own.drop(),
    },
    {
      name: 'against a running service',
      line: REMOTE,
      env: async () => {
        own = await createTestDatabase();
        service = await startService({
          env: {
            DATABASE_URL: own.url,
            OPENAI_API_KEY: 'sk-of-the-model',
            OPENAI_BASE_URL: model.url,
            COLLOQUY_API_KEYS: `tests:default:${KEY}`,
          },
          cwd: application.folder,
        });
        return { COLLOQUY_URL: service.url, COLLOQUY_KEY: KEY };
      },
      over: async () => {
        await service.stop();
        await own.drop();
      },
    },
  ];

  describe.each(modes)('$name', (mode) => {
    const { line } = mode;
    let environment: Record<string, string>;
    beforeAll(async () => {
      environment = await mode.env();
    });
    afterAll(() => mode.over());

    /** The output of a program, without the notes about options that have no effect. */
    async function outputOf(name: Name, ...replies: string[]): Promise<string[]> {
      model.next(...replies.map((content) => says(content)));
      const source = PROGRAMS[name].replace(SEED_IMPORT, line);
      expect(source).not.toContain('@dexto');
      application.writeProgram(`${name}.mjs`, source);
      const { code, output, lines } = await application.run(`${name}.mjs`, environment).ended;
      expect({ code, output }).toEqual({ code: 0, output });
      return lines.filter((one) => !one.includes('has no meaning'));
    }

    // Each of these programs starts the whole service, so one of them is tested in place of the others.
    const each = mode.line === LOCAL ? heavy : it;

    it('creates sessions, and remembers', async () => {
      const lines = await outputOf('basics', 'A library.', 'Vue has templates.');
      expect(lines).toEqual([
        expect.stringMatching(/^sess_\w+$/) as string,
        'user-123',
        'A library. / Vue has templates.',
      ]);
      expect(model.last.messages).toEqual([
        { role: 'user', content: 'What is React?' },
        { role: 'assistant', content: 'A library.' },
        { role: 'user', content: 'How does it differ from Vue?' },
      ]);
      expect(model.last).toMatchObject({ model: 'gpt-5-mini', authorization: 'Bearer sk-of-the-model' });
    });

    each('keeps several users apart', async () => {
      expect(await outputOf('chatBot', 'Hi, Alice', 'Hello, Bob', 'You said: Hi!')).toEqual([
        'Hi, Alice / Hello, Bob / You said: Hi!',
        '0',
      ]);
      expect(model.last.messages.map(({ content }) => content)).toEqual([
        'Hi!',
        'Hi, Alice',
        'What did I just say?',
      ]);
      expect(model.requests.at(-2)?.messages).toEqual([{ role: 'user', content: 'Hello!' }]);
    });

    each('lists, shows, resets and deletes', async () => {
      const lines = await outputOf('management', 'A typed language.');
      expect(lines[0]).toMatch(/^Active sessions: [1-9]\d*$/);
      expect(lines.slice(1)).toEqual([
        'Session user-123 exists',
        'user: What is TypeScript?',
        'assistant: A typed language.',
        '2',
        'Session not found',
      ]);
    });

    each('resumes where it was', async () => {
      expect(await outputOf('lifecycle', 'Hi')).toEqual(['Starting new conversation...', 'user-123 2']);
    });

    each('starts, stops and starts again on a database', async () => {
      expect(await outputOf('storage')).toEqual(['active']);
    });

    each('follows the best practices', async () => {
      expect(await outputOf('practices', 'Here I am.', 'Yes.')).toEqual([
        '3600000',
        'Session expired, created new one',
        'Here I am.',
        'Yes.',
      ]);
    });

    each('serves a web application with Express', async () => {
      // Only the port and the base URL of the client are changed.
      const source = `${SERVER.replace(SEED_IMPORT, line).replace('app.listen(3000)', 'const server = app.listen(0)')}
        server.on('listening', () => console.log('port', (server.address() as { port: number }).port));
        process.on('SIGTERM', async () => { server.close(); await agent.stop(); process.exit(0); });`;
      application.writeProgram('server.mjs', source);
      const server = application.run('server.mjs', environment);
      const [, port = ''] = await server.says(/^port (\d+)$/m);
      model.next(says('Hello yourself.'), says('You said Hello.'));
      application.writeProgram(
        'client.mjs',
        `${CLIENT.replaceAll(`fetch('/chat'`, `fetch('http://127.0.0.1:${port}/chat'`)}
        console.log(JSON.stringify([data1, await response2.json()]));`,
      );
      const { code, output } = await application.run('client.mjs', {}).ended;
      server.end();
      await server.ended;
      expect({ code, output }).toEqual({ code: 0, output });
      const [first, second] = JSON.parse(output) as [{ sessionId: string }, object];
      expect(first).toEqual({
        response: 'Hello yourself.',
        sessionId: expect.stringMatching(/^sess_/) as string,
      });
      expect(second).toEqual({ response: 'You said Hello.', sessionId: first.sessionId });
      expect(model.last.messages.map(({ content }) => content)).toEqual([
        'Hello',
        'Hello yourself.',
        'What did I just say?',
      ]);
    });
  });

  it('runs as CommonJS too', async () => {
    const env = { OPENAI_API_KEY: 'sk-x', OPENAI_BASE_URL: model.url, DATABASE_URL: database.url };
    model.next(says('A library.'), says('Vue has templates.'));
    const body = PROGRAMS.basics.replace(SEED_IMPORT, '');
    application.writeProgram('basics.cjs', `${LOCAL}(async () => {${body}})();`);
    const { code, output, lines } = await application.run('basics.cjs', env).ended;
    expect({ code, output }).toEqual({ code: 0, output });
    expect(lines.slice(1)).toEqual(['user-123', 'A library. / Vue has templates.']);
  });

  heavy(
    'needs no database of its own: PostgreSQL runs in the data folder, and keeps what was said',
    async () => {
      const dataDir = join(application.folder, 'data');
      mkdirSync(dataDir);
      const env = { OPENAI_API_KEY: 'sk-x', OPENAI_BASE_URL: model.url, COLLOQUY_DATA_DIR: dataDir };
      application.writeProgram('lifecycle.mjs', PROGRAMS.lifecycle.replace(SEED_IMPORT, LOCAL));
      for (const [line, count] of [
        ['Starting new conversation...', 2],
        ['Resuming conversation...', 4],
      ]) {
        model.next(says('Hi'));
        const { code, output, lines } = await application.run('lifecycle.mjs', env).ended;
        expect({ code, output }).toEqual({ code: 0, output });
        expect(lines).toEqual([line, `user-123 ${count}`]);
      }
    },
  );

  heavy('names once each option that has no effect, and names a wrong option', async () => {
    const env = { OPENAI_API_KEY: 'sk-x', OPENAI_BASE_URL: model.url, DATABASE_URL: database.url };
    const program = PROGRAMS.storage
      .replace(SEED_IMPORT, LOCAL)
      .replace(`type: 'redis'`, `type: 'in-memory'`);
    application.writeProgram('storage.mjs', program);
    const { output } = await application.run('storage.mjs', env).ended;
    expect(output.match(/storage\.cache has no meaning/g)).toHaveLength(1);
    application.writeProgram(
      'wrong.mjs',
      `${LOCAL}await new DextoAgent({ llm: { temperatur: 1 }, sessions: { maxSessions: 0 } }).start();`,
    );
    const wrong = await application.run('wrong.mjs', env).ended;
    expect(wrong.code).toBe(1);
    expect(wrong.output).toContain('llm.temperatur is not a known key');
    expect(wrong.output).toContain('sessions.maxSessions must be a whole number');
  });

  it('has types for all of them, for ES modules and CommonJS', () => {
    const types = createApplication(['express', '@types']);
    const programs = { ...PROGRAMS, server: `${SERVER}const stop = () => agent.stop();` };
    for (const [name, source] of Object.entries(programs)) {
      types.write(`${name}.mts`, `${source.replace(SEED_IMPORT, LOCAL)}\nexport {};\n`);
    }
    const typed = `
      const found: SessionInfo | undefined = await agent.getSession('x');
      const count: number = found?.messageCount ?? 0;
      for await (const event of agent.stream('x', { sessionId: 'x', onBusy: 'queue' })) {
        if (event.type === 'message.delta') event.text.length;
        else if (event.type === 'tool.call') event.arguments.length;
        else if (event.type === 'message.completed') event.usage?.inputTokens;
      }
      try { await agent.cancel('x'); } catch (error) { if (error instanceof ColloquyError) error.code.length; }
      // @ts-expect-error -- no such option
      await agent.generate('x', { session: 'x' });
      return count;`;
    types.write(
      'client.mts',
      `import { Agent, ColloquyError, type SessionInfo } from 'colloquy/client';
       export async function run(agent: Agent) {${typed}}`,
    );
    types.write(
      'client.cts',
      `import { Agent, ColloquyError, type SessionInfo } from 'colloquy';
       export async function run(agent: Agent) {${typed}}`,
    );
    // The programs of the page on the library. All but the first one continue with the agent of the first.
    const page = readFileSync(join(ROOT, 'docs/library.md'), 'utf8');
    const shown = [...page.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, program = '']) => program);
    expect(shown.length).toBeGreaterThan(2);
    for (const [index, program] of shown.entries()) {
      const before = index === 0 ? '' : `declare const agent: import('colloquy').Agent;\n`;
      types.write(`page-${index}.mts`, `${before}${program}\nexport {};\n`);
    }
    types.write(
      'tsconfig.json',
      JSON.stringify({
        compilerOptions: {
          module: 'nodenext',
          target: 'es2022',
          strict: true,
          // One of the programs sets a field after its constructor.
          strictPropertyInitialization: false,
          noEmit: true,
          exactOptionalPropertyTypes: true,
          types: ['node'],
          lib: ['es2023'],
        },
        include: ['*.mts', '*.cts'],
      }),
    );
    const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
    const { stdout, status } = spawnSync(process.execPath, [tsc, '-p', types.folder], { encoding: 'utf8' });
    types.remove();
    expect({ stdout, status }).toEqual({ stdout: '', status: 0 });
  });
});
