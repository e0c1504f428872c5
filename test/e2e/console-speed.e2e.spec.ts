import { type Browser } from 'playwright-core';
import { describeInChromium, launch, openConsole } from '../support/browser.js';
import { conducted, type FakeOpenAi } from '../support/fake-openai.js';
import { type Api, eventually } from '../support/http.js';
import { createWorld, user, type World } from './fixture.js';

/*
 * The figures are printed, and are better than what is held here: other programs use the machine as well.
 */

const TOKENS = 200;
/** How long a token may take from its arrival in the page until it stands there, in 99 of 100 cases. */
const SHOWN_MS = 50;
const MESSAGES = 10_000;
const LONG_TASK_MS = 100;
/** What is too slow is so each time; what another program has held up is not. */
const ROUNDS = 6;

/** Notes when each token comes out of the network, and when it stands in the page. */
const WATCH_TOKENS = `
  globalThis.arrived = new Map();
  globalThis.shown = new Map();
  const { fetch } = globalThis;
  globalThis.fetch = async (...asked) => {
    const answer = await fetch(...asked);
    if (!answer.body || !String(asked[0]).includes('/generate')) return answer;
    const [own, other] = answer.body.tee();
    const reader = own.pipeThrough(new TextDecoderStream()).getReader();
    (async () => {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        for (const [token] of value.matchAll(/<\\d+>/g)) if (!arrived.has(token)) arrived.set(token, performance.now());
      }
    })();
    return new Response(other, { status: answer.status, headers: answer.headers });
  };
  new MutationObserver(() => {
    const text = document.querySelector('#reply')?.textContent ?? '';
    const now = performance.now();
    for (let at = shown.size; text.includes('<' + at + '>'); at += 1) shown.set('<' + at + '>', now);
  }).observe(document, { subtree: true, childList: true, characterData: true });`;

const WATCH_TASKS = `
  globalThis.tasks = [];
  new PerformanceObserver((list) => { for (const { duration, startTime } of list.getEntries()) tasks.push([Math.round(startTime), duration]); })
    .observe({ type: 'longtask', buffered: true });`;

const longestOf = (tasks: [number, number][]): number =>
  Math.max(0, ...tasks.map(([, duration]) => duration));

describeInChromium('the speed of the console', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  let browser: Browser;
  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    ({ api } = await world.node());
    browser = await launch();
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });

  it(`given a reply in ${TOKENS} tokens, when they arrive, then each of them stands in the page within ${SHOWN_MS} ms`, async () => {
    await api.post('/v1/sessions', { id: 'fast' });
    await api.post('/v1/sessions/fast/messages', {
      messages: Array.from({ length: 200 }, (_, n) => user(`${n}`)),
    });
    await quickest(SHOWN_MS, streamTokens);
  }, 120_000);

  /** @returns after how many ms 99 of 100 tokens stood in the page */
  async function streamTokens(): Promise<number> {
    const reply = conducted();
    model.next(reply.reply);
    const { page, open, context, faults } = await openConsole(browser, api.url, { script: WATCH_TOKENS });
    await open('/sessions/fast');
    await page.getByLabel('Message', { exact: true }).waitFor();
    await page.getByText('199', { exact: true }).first().waitFor();
    await page.getByLabel('Message', { exact: true }).fill('Go');
    await page.keyboard.press('Enter');
    await reply.asked;
    for (let n = 0; n < TOKENS; n += 1) {
      reply.say(`<${n}> `);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await eventually(async () => (await page.evaluate('shown.size')) === TOKENS);
    reply.end();
    const delays = await page.evaluate<number[]>(
      `[...shown].map(([token, time]) => time - arrived.get(token)).sort((a, b) => a - b)`,
    );
    expect(delays).toHaveLength(TOKENS);
    const [middle = NaN, most = NaN] = [delays[TOKENS / 2], delays[Math.floor(TOKENS * 0.99)]];
    process.stdout.write(
      `tokens stand in the page after ${middle.toFixed(1)} ms (median), ${most.toFixed(1)} ms (99 of 100), at most ${delays.at(-1)?.toFixed(1) ?? ''} ms\n`,
    );
    expect(await faults()).toEqual([]);
    await context.close();
    return most;
  }

  it(`given a session of ${MESSAGES} messages, when it is scrolled through and its slider is moved, then nothing keeps the page from answering for ${LONG_TASK_MS} ms`, async () => {
    await api.post('/v1/sessions', { id: 'long' });
    for (let at = 0; at < MESSAGES; at += 1000)
      await api.post('/v1/sessions/long/messages', {
        messages: Array.from({ length: 1000 }, (_, n) =>
          user(`Message ${at + n}. ${'It has some more words in it. '.repeat(n % 12)}`),
        ),
      });
    await quickest(LONG_TASK_MS, scrollAndSlide);
  }, 240_000);

  /** Repeats a round until it keeps within a limit. */
  async function quickest(limitMs: number, round: () => Promise<number>): Promise<void> {
    const rounds: number[] = [];
    while (rounds.length < ROUNDS && !rounds.some((ms) => ms < limitMs)) rounds.push(await round());
    expect(Math.min(...rounds)).toBeLessThan(limitMs);
  }

  /** @returns the longest task in ms */
  async function scrollAndSlide(): Promise<number> {
    const { page, open, context, faults } = await openConsole(browser, api.url, { script: WATCH_TASKS });
    await open('/sessions/long');
    await page.locator('.conversation .message', { hasText: `Message ${MESSAGES - 1}.` }).waitFor();

    const ofLoading = longestOf(await page.evaluate('tasks.splice(0)'));

    // Up to the very first message, through all pages. The page is asked by plain scripts: the locators of the test would
    // keep it busy themselves.
    await eventually(async () => {
      const first = await page.evaluate<string>(`(() => {
        const list = document.querySelector('[aria-label=Messages].virtual');
        list.scrollTop = 0;
        return list.querySelector('.text').textContent;
      })()`);
      return first.startsWith('Message 0.');
    }, 60_000);
    const drawn = await page.evaluate(`(() => {
      const lines = [...document.querySelectorAll('.conversation .line')];
      return { few: lines.length < 60, of: lines[0].getAttribute('aria-setsize') };
    })()`);
    expect(drawn).toEqual({ few: true, of: String(MESSAGES) });
    // Down again as fast as a wheel goes.
    await page.evaluate(`(async () => {
      const list = document.querySelector('[aria-label=Messages].virtual');
      for (let step = 0; step < 200; step += 1) {
        list.scrollTop += 2_000;
        await new Promise((resolve) => requestAnimationFrame(resolve));
      }
    })()`);
    // A slider that is dragged from one end to the other.
    await page.evaluate(`(async () => {
      const slider = document.querySelector('#slider');
      for (let step = 1; step <= 100; step += 1) {
        slider.value = String(step * 100);
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        await new Promise((resolve) => requestAnimationFrame(resolve));
      }
      slider.value = '5001';
      slider.dispatchEvent(new Event('input', { bubbles: true }));
    })()`);
    await eventually(() =>
      page.evaluate<boolean>(`document.querySelector('.conversation[aria-busy=false]')?.textContent.includes('Message 4999.')
        && [...document.querySelectorAll('.event')].some((one) => one.textContent.startsWith('5,001MessageAppended'))`),
    );

    const tasks = await page.evaluate<[number, number][]>('tasks');
    process.stdout.write(
      `with ${MESSAGES} messages: ${tasks.length} tasks of more than 50 ms, the longest of ${longestOf(tasks)} ms; of ${ofLoading} ms while the page was loaded\n`,
    );
    expect(await faults()).toEqual([]);
    await context.close();
    return longestOf(tasks);
  }
});
