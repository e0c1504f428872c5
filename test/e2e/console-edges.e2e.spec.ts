import { type Browser, type Page } from 'playwright-core';
import {
  describeInChromium,
  launch,
  openConsole,
  type ConsolePage,
  type PageOptions,
} from '../support/browser.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { startProxy } from '../support/tcp-proxy.js';
import { bearer, createIssuer } from '../support/tokens.js';
import { createWorld, say, user, type World } from './fixture.js';

/** What may stand in a message, and must never be anything but text. */
const HOSTILE = [
  '<script>globalThis.wasRun = true</script>',
  '<img src=x onerror="globalThis.wasRun = true">',
  '[click](javascript:globalThis.wasRun=true) javascript:globalThis.wasRun=true',
  '<a href="https://evil.example">https://evil.example</a>',
  '<style>body { display: none }</style><iframe src="//evil.example"></iframe>',
  '"><svg onload=globalThis.wasRun=true> {{constructor.constructor("globalThis.wasRun=true")()}}',
];
const MEBIBYTE = 1_048_576;

describeInChromium('the console at its edges', () => {
  let world: World;
  let url: string;
  let acme: Api;
  let browser: Browser;
  let view: ConsolePage;
  let page: Page;
  const issuer = createIssuer();
  beforeAll(async () => {
    world = await createWorld();
    const env = { COLLOQUY_API_KEYS: 'ops:*:key-of-ops,app:acme:key-of-acme', ...issuer.env };
    ({ url } = (await world.node(env)).service);
    acme = apiOf(url, bearer('key-of-acme'));
    browser = await launch();
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });
  const begin = async (at: string, options: PageOptions = { key: 'key-of-acme' }): Promise<void> => {
    view = await openConsole(browser, url, options);
    ({ page } = view);
    await view.open(at);
  };
  afterEach(async () => {
    expect(await view.faults()).toEqual([]);
    await view.context.close();
  });
  const bubbles = (): Promise<string[]> => page.locator('.conversation .message .text').allTextContents();

  it('given nobody has signed in, when the page is opened, then it asks for a key, keeps it in the tab alone, and forgets it', async () => {
    await acme.post('/v1/sessions', { id: 'seen' });
    await begin('/sessions/seen', {});
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
    await page.getByLabel('API key or token').fill('a-wrong-key');
    await page.keyboard.press('Enter');
    await page.getByText('The key is not known').waitFor();
    await page.getByLabel('API key or token').fill('key-of-acme');
    await page.keyboard.press('Enter');
    // One comes to where one wanted to.
    await page.getByRole('heading', { name: 'seen' }).waitFor();
    expect(
      await page.evaluate('[sessionStorage.getItem("colloquy.key"), localStorage.length, document.cookie]'),
    ).toEqual(['key-of-acme', 0, '']);
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
    expect(await page.evaluate('sessionStorage.getItem("colloquy.key")')).toBeNull();
    const other = await view.context.newPage();
    await other.goto(`${url}/console`);
    await other.getByRole('heading', { name: 'Sign in' }).waitFor();
  });

  it('given no key is needed, when the page is opened, then none is asked for', async () => {
    const open = await world.node();
    view = await openConsole(browser, open.service.url);
    ({ page } = view);
    await view.open('/sessions');
    await page.getByRole('heading', { name: 'Sessions' }).waitFor();
    await page.getByText('live', { exact: true }).waitFor();
    expect(await page.getByRole('button', { name: 'Sign out' }).count()).toBe(0);
    await open.service.stop();
  });

  it('given a token that sees the sessions of its owner alone, when it opens the page, then these are there, without what is of the whole tenant', async () => {
    const token = await issuer.token('acme', 'alice', 'sessions:read:own sessions:write:own generate:own');
    await acme.post('/v1/sessions', { id: 'of-alice', owner: 'alice' });
    await begin('/sessions', { key: token });
    await page.getByText('every 5 s').waitFor();
    await page.locator('.row', { hasText: 'of-alice' }).waitFor();
    expect(await page.locator('.row').count()).toBe(1);
    await page.locator('.row').click();
    await page.getByRole('alert').getByText('This needs the scope audit:read').first().waitFor();
    await page.getByLabel('Message', { exact: true }).fill('Hello');
    await page.keyboard.press('Enter');
    await eventually(async () => (await bubbles()).length === 2);
    expect(await page.getByRole('slider').count()).toBe(0);
  });

  it('given a session that never was, when it is opened, then the page says so', async () => {
    await begin('/sessions/nobody-has-this');
    await page.getByText('There is no such thing').waitFor();
    expect(await page.getByRole('button', { name: 'Delete' }).count()).toBe(0);
  });

  it('given a history that is reset while it is read, when older messages are asked for, then it is read anew', async () => {
    await acme.post('/v1/sessions', { id: 'moving' });
    const many = Array.from({ length: 400 }, (_, index) => user(`message ${index}`));
    await acme.post('/v1/sessions/moving/messages', { messages: many });
    // The page of older messages was read before the reset, and arrives after the page has heard of it.
    let release = (): void => undefined;
    const heard = new Promise<void>((resolve) => (release = resolve));
    let isRead = false;
    view = await openConsole(browser, url, { key: 'key-of-acme' });
    ({ page } = view);
    await page.route(/\/messages\?.*cursor=/, async (route) => {
      const response = await route.fetch();
      isRead = true;
      await heard;
      await route.fulfill({ response });
    });
    await view.open('/sessions/moving');
    await eventually(() => Promise.resolve(isRead));
    await acme.post('/v1/sessions/moving/reset');
    await say(acme, 'moving', 'begun anew');
    await eventually(async () => JSON.stringify(await bubbles()) === '["begun anew"]');
    const again = page.waitForResponse((response) => response.url().includes('/moving/messages?'));
    release();
    await again;
    await page.evaluate('new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve), 100))');
    expect(await bubbles()).toEqual(['begun anew']);
  });

  it('given read models that are behind, when a list is read, then the page says so, tries again, and shows it when it can', async () => {
    await acme.post('/v1/sessions', { id: 'before' });
    await begin('/usage');
    await page.getByText(/tokens from/).waitFor();
    await world.database.query('begin');
    await world.database.query('lock table projection_checkpoint in exclusive mode');
    await acme.post('/v1/sessions', { id: 'late' });
    await page.keyboard.press('g');
    await page.keyboard.press('s');
    await page.getByText('projection-lagging').first().waitFor();
    await world.database.query('commit');
    await page.locator('.row', { hasText: 'late' }).waitFor();
    await page.getByText('projection-lagging').waitFor({ state: 'detached' });
  });

  it('given the service and the network are gone, when they are back, then what was loaded has stayed, and what happened meanwhile comes by itself', async () => {
    await acme.post('/v1/sessions', { id: 'offline' });
    await say(acme, 'offline', 'before');
    const proxy = await startProxy(url);
    view = await openConsole(browser, new URL(proxy.url).origin, { key: 'key-of-acme' });
    ({ page } = view);
    await view.open('/sessions/offline');
    await page.getByText('before', { exact: true }).waitFor();
    proxy.down();
    await page.getByText('The service does not answer. It is tried again.').waitFor();
    await view.context.setOffline(true);
    await page.getByText('You are offline.').waitFor();
    await say(acme, 'offline', 'meanwhile');
    expect(await bubbles()).toEqual(['before']);
    proxy.up();
    await view.context.setOffline(false);
    await eventually(async () => JSON.stringify(await bubbles()) === '["before","meanwhile"]');
    await page.locator('.trouble:empty').waitFor({ state: 'attached' });
    await proxy.close();
  });

  it('given a list and a connection that is lost before anything has happened, when it is back, then the sessions of meanwhile are there', async () => {
    await acme.post('/v1/sessions', { id: 'of-before' });
    const proxy = await startProxy(url);
    view = await openConsole(browser, new URL(proxy.url).origin, { key: 'key-of-acme' });
    ({ page } = view);
    await view.open('/sessions');
    await page.getByText('live', { exact: true }).waitFor();
    await page.locator('.row', { hasText: 'of-before' }).waitFor();
    proxy.down();
    await page.getByText('The service does not answer. It is tried again.').waitFor();
    await acme.post('/v1/sessions', { id: 'of-meanwhile' });
    proxy.up();
    await page.locator('.row', { hasText: 'of-meanwhile' }).waitFor();
    await proxy.close();
  });

  it('given markup, scripts and addresses in everything that others write, when it is shown, then it is text, nothing runs and nothing is fetched', async () => {
    const title = HOSTILE[1] ?? '';
    await acme.post('/v1/sessions', {
      id: 'hostile',
      title,
      owner: '<b>owner</b>',
      metadata: { [HOSTILE[0] ?? '']: HOSTILE[5] },
    });
    await acme.post('/v1/sessions/hostile/messages', { messages: HOSTILE.map(user) });
    await acme.post('/v1/sessions/hostile/messages', {
      role: 'assistant',
      content: HOSTILE[0],
      toolCalls: [{ id: '<i>c</i>', name: 'search', arguments: HOSTILE[5] }],
    });
    await acme.post('/v1/sessions/hostile/messages', {
      role: 'user',
      content: [{ type: 'image', url: 'https://evil.example/x.png' }],
    });
    const abroad: string[] = [];
    await begin('/sessions');
    page.on('request', (request) => {
      if (!request.url().startsWith(url)) abroad.push(request.url());
    });
    await page.locator('.row', { hasText: title }).waitFor();
    await page.locator('.row', { hasText: title }).click();
    await eventually(async () => (await bubbles()).length >= HOSTILE.length + 2);
    expect((await bubbles()).slice(0, HOSTILE.length)).toEqual(HOSTILE);
    for (const tab of ['State', 'Prompt', 'Changes']) await page.getByRole('tab', { name: tab }).click();
    await view.open('/search?q=wasRun');
    await page.locator('mark').first().waitFor();
    expect(await page.evaluate('globalThis.wasRun')).toBeUndefined();
    expect(
      await page
        .locator(
          'main script, main iframe, main style, main svg, main a[href^="http"], main a[href^="javascript"]',
        )
        .count(),
    ).toBe(0);
    expect(abroad).toEqual([]);
  });

  it('given control characters and scripts of all directions, when they are shown, then each message has its own direction and nothing is hidden', async () => {
    await acme.post('/v1/sessions', { id: 'scripts', title: 'שלום עולם' });
    const said = [
      'مرحبا بالعالم',
      '漢字かな交じり文 한국어',
      'left \u202Ereversed',
      'bell\u0007 and escape\u001b[31m',
      '𝒲𝒾𝒹ℯ 👩‍👩‍👧‍👦',
    ];
    await acme.post('/v1/sessions/scripts/messages', { messages: said.map(user) });
    await begin('/sessions/scripts');
    // The list of events shows the same text, sooner or later.
    await page.locator('.conversation').getByText('𝒲𝒾𝒹ℯ').waitFor();
    const directions = await page.evaluate(
      `[...document.querySelectorAll('.conversation .message .text')].map((one) => getComputedStyle(one).direction + ' ' + getComputedStyle(one).unicodeBidi)`,
    );
    expect(directions).toEqual(['rtl isolate', 'ltr isolate', 'ltr isolate', 'ltr isolate', 'ltr isolate']);
    expect((await bubbles())[3]).toBe('bell␇ and escape␛[31m');
    expect(await page.evaluate(`getComputedStyle(document.querySelector('main h1')).direction`)).toBe('rtl');
    // Nothing is wider than the page, also on a telephone.
    await page.setViewportSize({ width: 390, height: 800 });
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(390);
  });

  it('given one line of a mebibyte, when it is opened, then its beginning is shown at once, and more of it on demand', async () => {
    await acme.post('/v1/sessions', { id: 'long' });
    await acme.post('/v1/sessions/long/messages', user('x'.repeat(MEBIBYTE - 200)));
    await begin('/sessions/long', {
      key: 'key-of-acme',
      script: `globalThis.longest = 0; new PerformanceObserver((list) => { for (const one of list.getEntries()) longest = Math.max(longest, one.duration); }).observe({ type: 'longtask', buffered: true });`,
    });
    const more = page.getByRole('button', { name: /more characters/ });
    await more.waitFor();
    await more.click();
    expect((await bubbles())[0]?.length).toBeGreaterThan(40_000);
    expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true);
    process.stdout.write(
      `the longest task with a mebibyte in one line: ${String(await page.evaluate('longest'))} ms\n`,
    );
  });
});
