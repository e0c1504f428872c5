import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Browser, type Page } from 'playwright-core';
import { describeInChromium, launch } from '../support/browser.js';
import { callsTools, conducted, type FakeOpenAi, fails, says } from '../support/fake-openai.js';
import { heavyDescribe } from '../support/heavy.js';
import { type Api, eventually } from '../support/http.js';
import { describeUnless, freePort } from '../support/programs.js';
import { createWorld, type World } from './fixture.js';

const run = promisify(execFile);
const ROOT = join(__dirname, '../..');

let world: World;
let model: FakeOpenAi;
let api: Api;
/** A service that wants a key. */
let locked: string | undefined;
beforeAll(async () => {
  world = await createWorld();
  model = await world.model();
  model.beStrict();
  ({ api } = await world.node());
});
afterAll(async () => {
  expect(model.faults).toEqual([]);
  await world.end();
});

const output = async (program: string, ...args: string[]): Promise<string> => {
  const env = { ...process.env, COLLOQUY_URL: api.url, COLLOQUY_LOCKED_URL: locked };
  return (await run(program, args, { cwd: ROOT, env, timeout: 60_000 })).stdout;
};

describe('the examples', () => {
  it('given the example for OpenAI’s SDK, when it runs, then it tells of a conversation and a branch', async () => {
    model.next(says('A library.'), says('A framework.'), says('A compiler.'));
    expect(await output(process.execPath, 'examples/openai-sdk/main.mjs')).toMatch(
      /^A library\.\nA framework\.\nA compiler\.\nconv_\w+ has 4 items; the last response is completed\n$/,
    );
  });

  it('given the example for OpenAI Agents, when it runs, then its session has the tool call and both answers', async () => {
    model.next(
      callsTools([{ id: 'c', name: 'weather', arguments: '{"city":"Rome"}' }]),
      says('It is 18 °C.'),
      says('How warm it is in Rome.'),
    );
    expect(await output(process.execPath, 'examples/agents/main.mjs')).toMatch(
      /^It is 18 °C\.\nHow warm it is in Rome\.\nsess_[\w-]+ has 6 items\n$/,
    );
  });

  it('given the example for LangChain, when it runs twice, then it begins anew each time', async () => {
    for (let n = 0; n < 2; n += 1) {
      expect(await output(process.execPath, 'examples/langchain/main.mjs')).toBe(
        'I see 1 messages.\nI see 3 messages.\nlangchain-example has 4 messages\n',
      );
    }
  });
});

// They fetch what they need from registries.
heavyDescribe('the examples that need more than Node', () => {
  const isPython = existsSync('/usr/bin/python3');
  const python = { what: 'Python', variable: 'REQUIRE_PROGRAMS' };
  describeUnless(isPython ? undefined : 'it is not installed', python, 'Python', () => {
    let python3: string;
    beforeAll(async () => {
      const venv = join(await world.folder(), 'venv');
      await run('python3', ['-m', 'venv', venv]);
      await run(join(venv, 'bin/pip'), ['install', '--quiet', '--disable-pip-version-check', 'openai'], {
        timeout: 240_000,
      });
      python3 = join(venv, 'bin/python');
    }, 300_000);

    it('given the example for OpenAI’s Python client, when it runs, then it tells of a conversation, a branch and a deletion', async () => {
      model.next(says('A library.'), says('A framework.'), says('A compiler.'));
      expect(await output(python3, 'examples/python-openai/main.py')).toMatch(
        /^A library\.\nA framework\.\nA compiler\.\nconv_\w+ has 4 items; the last response is completed\ndeleted: not_found\n$/,
      );
    });

    it('given OpenAI’s Python client, when it uses tools, schemas, streams, the background and what is refused, then everything has the classes that it knows', async () => {
      const slow = conducted();
      model.next(
        callsTools(['c1', 'c2'].map((id) => ({ id, name: 'search', arguments: '{}' }))),
        says('Found.'),
        says('{"number":4}'),
        says('A story.'),
        says('Forgotten.'),
        slow.reply,
        fails(500, 'GPU lost'),
        says('Chatted.'),
      );
      const node = await world.node({ COLLOQUY_API_KEYS: 'ann:acme:the-key' });
      locked = node.service.url;
      expect(await output(python3, 'test/support/openai_client.py')).toBe('{"done": true}');
    });
  });

  describeInChromium('a page with useChat', () => {
    let server: ChildProcess;
    let browser: Browser;
    let url: string;

    beforeAll(async () => {
      const folder = join(await world.folder(), 'next-chat');
      await cp(join(ROOT, 'examples/next-chat'), folder, {
        recursive: true,
        filter: (path) => !/node_modules|\.next/.test(path.slice(ROOT.length)),
      });
      const env = {
        ...process.env,
        COLLOQUY_URL: api.url,
        NEXT_TELEMETRY_DISABLED: '1',
        NODE_ENV: 'production',
      };
      await run('npm', ['install', '--no-audit', '--no-fund', '--loglevel=error'], { cwd: folder, timeout: 300_000, env: { ...env, NODE_ENV: 'development' } }); // prettier-ignore
      await run('npx', ['next', 'build'], { cwd: folder, env, timeout: 300_000 });
      const port = await freePort();
      url = `http://127.0.0.1:${port}`;
      server = spawn(process.execPath, ['node_modules/next/dist/bin/next', 'start', '-p', String(port)], {
        cwd: folder,
        env,
        stdio: 'ignore',
      });
      await eventually(async () => (await fetch(url, { redirect: 'manual' }).catch(() => undefined)) !== undefined, 60_000); // prettier-ignore
      browser = await launch();
    }, 600_000);
    afterAll(async () => {
      await browser.close();
      const ended = once(server, 'exit');
      server.kill('SIGKILL');
      await ended;
    });

    const texts = (page: Page): Promise<string[]> =>
      page.evaluate<string[]>(`[...document.querySelectorAll('article')].map((one) => one.textContent)`);
    const ids = (page: Page): Promise<string[]> =>
      page.evaluate<string[]>(`[...document.querySelectorAll('article')].map((one) => one.id)`);
    const shows = (page: Page, ...expected: string[]): Promise<boolean> =>
      eventually(async () => JSON.stringify(await texts(page)) === JSON.stringify(expected), 20_000);
    const isReady = (page: Page): Promise<boolean> =>
      eventually(
        async () => (await page.evaluate(`document.querySelector('output').textContent`)) === 'ready',
        20_000,
      );
    const send = async (page: Page, text: string): Promise<void> => {
      await page.locator('input').pressSequentially(text);
      await page.click('form button');
    };
    const press = async (page: Page, label: string): Promise<void> => {
      await page.evaluate(
        `[...document.querySelectorAll('button')].find((one) => one.textContent === ${JSON.stringify(label)}).click()`,
      );
    };

    it('given a chat in a browser, when it is used, reloaded in the middle of a reply, stopped and answered again, then the page shows what is recorded', async () => {
      const page = await browser.newPage();
      model.next(says('First.'));
      await page.goto(url, { waitUntil: 'networkidle' });
      await send(page, 'one');
      await shows(page, 'one', 'First.');
      await isReady(page);

      const reply = conducted();
      model.next(reply.reply);
      await send(page, 'two');
      await reply.asked;
      reply.say('Sec');
      await shows(page, 'one', 'First.', 'two', 'Sec');
      const before = await ids(page);
      await page.reload({ waitUntil: 'domcontentloaded' });
      await shows(page, 'one', 'First.', 'two', 'Sec');
      reply.say('ond.');
      reply.end();
      await shows(page, 'one', 'First.', 'two', 'Second.');
      await isReady(page);
      expect(await ids(page)).toEqual(before);

      const long = conducted();
      model.next(long.reply);
      await send(page, 'three');
      await long.asked;
      long.say('begun');
      await shows(page, 'one', 'First.', 'two', 'Second.', 'three', 'begun');
      await press(page, 'Stop');
      await long.abandoned;
      await isReady(page);
      model.next(says('Whole.'));
      await press(page, 'Again');
      await shows(page, 'one', 'First.', 'two', 'Second.', 'three', 'Whole.');
      await isReady(page);
      const id = new URL(page.url()).pathname.slice(1);
      const { body } = await api.get<{ data: { content: string }[] }>(`/v1/sessions/${id}/messages`);
      expect(body.data.map(({ content }) => content)).toEqual(await texts(page));
      await page.reload({ waitUntil: 'networkidle' });
      await shows(page, 'one', 'First.', 'two', 'Second.', 'three', 'Whole.');
    }, 120_000);
  });
});
