import { readFile } from 'node:fs/promises';
import { type Browser, type Page } from 'playwright-core';
import { describeInChromium, launch, openConsole, type ConsolePage } from '../support/browser.js';
import { sized } from '../support/heavy.js';
import { type Api, eventually } from '../support/http.js';
import { createWorld, logged, say, user, type World } from './fixture.js';

describeInChromium('sessions, search and usage in the console', () => {
  let world: World;
  let api: Api;
  let browser: Browser;
  let view: ConsolePage;
  let page: Page;
  beforeAll(async () => {
    world = await createWorld();
    ({ api } = await world.node({ MAX_SESSIONS: '1000000' }));
    browser = await launch();
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });
  beforeEach(async () => {
    view = await openConsole(browser, api.url);
    ({ page } = view);
  });
  afterEach(async () => {
    expect(await view.faults()).toEqual([]);
    await view.context.close();
  });

  /** A client, and the page, of a tenant of its own. */
  const tenant = async (
    name: string,
    at = '/sessions',
  ): Promise<(path: string, body: unknown) => Promise<unknown>> => {
    await page.addInitScript(
      `if (location.protocol !== 'about:') sessionStorage.setItem('colloquy.tenant', '${name}')`,
    );
    await view.open(at);
    return (path, body) => api.post(path, body, { 'colloquy-tenant': name });
  };
  const row = (text: string) => page.locator('.row', { hasText: text });
  const ids = (): Promise<string[]> => page.locator('.row .id').allTextContents();
  const shows = (...expected: string[]): Promise<unknown> =>
    eventually(async () => JSON.stringify(await ids()) === JSON.stringify(expected)).catch(async () => {
      expect(await ids()).toEqual(expected);
    });

  it('given nobody has a session yet, when the page is opened, then it says what sessions are and begins one', async () => {
    await tenant('empty');
    await page.getByText('There are no sessions yet.').waitFor();
    await page.keyboard.press('n');
    const dialog = page.getByRole('dialog', { name: 'New session' });
    await dialog.getByLabel('Title (may be left out)').fill('My first');
    await dialog.getByLabel('Id (one is made unless you give one)').fill('mine');
    await dialog.getByLabel('Owner (whose it is; stays with the id for ever)').fill('alice');
    await dialog.getByRole('button', { name: 'Create' }).click();
    await page.getByRole('heading', { level: 1, name: 'My first' }).waitFor();
    expect((await api.get('/v1/sessions/mine', { 'colloquy-tenant': 'empty' })).body).toMatchObject({
      title: 'My first',
      owner: 'alice',
    });
  });

  it('given a list, when others create, use and delete sessions, then it shows that by itself, the newest first', async () => {
    const post = await tenant('live');
    await page.getByText('There are no sessions yet.').waitFor();
    await post('/v1/sessions', { id: 'a', title: 'The first' });
    await shows('a');
    await post('/v1/sessions', { id: 'b' });
    await shows('b', 'a');
    await post('/v1/sessions/a/messages', user('hello'));
    await row('The first').getByText('1 message', { exact: true }).waitFor();
    await api.send('PATCH', '/v1/sessions/a', '{"title":"Renamed"}', {
      'content-type': 'application/json',
      'colloquy-tenant': 'live',
    });
    await row('Renamed').waitFor();
    await api.delete('/v1/sessions/b', { 'colloquy-tenant': 'live' });
    await shows('a');
  });

  it('given sessions, when they are filtered by text, owner and status, then those that match are shown, and the address keeps it', async () => {
    const post = await tenant('filters');
    for (const [id, title, owner] of [
      ['a', 'Order 1', 'alice'],
      ['b', 'Order 2', 'bob'],
      ['c', 'Complaint', 'alice'],
    ])
      await post('/v1/sessions', { id, title, owner });
    await shows('c', 'b', 'a');
    await page.keyboard.press('/');
    await page.keyboard.type('order');
    await shows('b', 'a');
    await page.getByLabel('Filter by owner').fill('alice');
    await shows('a');
    await page.waitForURL(/q=order&owner=alice/);
    await page.reload();
    await shows('a');
    await page.getByLabel('Filter by status').selectOption('expired');
    await page.getByText('No session matches.').waitFor();
  });

  it('given a dialog that has just been closed, when the next one is opened at once, then it stays open', async () => {
    await api.post('/v1/sessions', { id: 'hasty' });
    await view.open('/sessions/hasty');
    const dialog = page.getByRole('dialog');
    await page.getByRole('button', { name: 'Rename', exact: true }).click();
    await dialog.getByLabel('Title').waitFor();
    // The browser tells of the end of the first dialog in a task of its own, which comes after this.
    await page.evaluate(`(async () => {
      const press = (name) => [...document.querySelectorAll('button')].find((one) => one.textContent === name).click();
      press('Cancel');
      while (document.querySelector('dialog')) await undefined;
      press('Reset');
    })()`);
    await page.evaluate('new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve), 50))');
    await dialog.getByRole('button', { name: 'Reset' }).click();
    await dialog.waitFor({ state: 'detached' });
  });

  it('given a session, when it is renamed, reset and deleted, then that is done, and deleting wants its id typed', async () => {
    await api.post('/v1/sessions', { id: 'worked', title: 'Before' });
    await say(api, 'worked', 'hello');
    await view.open('/sessions/worked');
    const dialog = page.getByRole('dialog');
    const press = (name: string) => page.getByRole('button', { name, exact: true }).click();
    await press('Rename');
    await dialog.getByLabel('Title').fill('After');
    await dialog.getByRole('button', { name: 'Rename' }).click();
    await page.getByRole('heading', { name: 'After' }).waitFor();
    await press('Reset');
    await dialog.getByRole('button', { name: 'Reset' }).click();
    await page.getByText('Nothing has been said yet.').waitFor();
    await press('Delete');
    const last = dialog.getByRole('button', { name: 'Delete' });
    await dialog.getByLabel('Type worked to confirm').fill('worke');
    expect(await last.isDisabled()).toBe(true);
    await dialog.getByLabel('Type worked to confirm').fill('worked');
    await dialog.getByLabel('Reason').fill('no longer needed');
    await last.click();
    await page.getByRole('heading', { name: 'Sessions' }).waitFor();
    expect((await logged(world.database, 'worked')).map(({ type }) => type)).toEqual([
      'SessionCreated',
      'MessageAppended',
      'SessionDetailsChanged',
      'ConversationReset',
      'SessionDeleted',
    ]);
  });

  it(
    'given more sessions than anybody could draw, when the list is scrolled to its end, then all of them come by pages, and few are drawn',
    async () => {
      const count = sized(100_000, 3_000, 1_200);
      const post = await tenant('many', '/usage');
      for (let at = 0; at < count; at += 100)
        await Promise.all(
          Array.from({ length: 100 }, (_, index) => post('/v1/sessions', { id: `s${at + index}` })),
        );
      await view.open('/sessions');
      await row('s').first().waitFor();
      const drawn = await eventually(
        async () => {
          await page.evaluate(
            `(() => { const list = document.querySelector('.virtual'); list.scrollTop = list.scrollHeight; })()`,
          );
          const last = page.locator('.line').last();
          const [size, place] = [
            await last.getAttribute('aria-setsize'),
            await last.getAttribute('aria-posinset'),
          ];
          return size === String(count) && place === size && (await page.locator('.line').count());
        },
        sized(600_000, 60_000, 30_000),
      );
      expect(drawn).toBeLessThan(60);
    },
    sized(900_000, 120_000, 60_000),
  );

  it('given messages, when they are searched, then what was found is marked, and leads to its moment', async () => {
    const post = await tenant('found', '/search');
    await post('/v1/sessions', { id: 'one' });
    await post('/v1/sessions', { id: 'two', owner: 'alice' });
    await post('/v1/sessions/one/messages', { messages: [user('Where is my parcel?'), user('Never mind.')] });
    await post('/v1/sessions/two/messages', user('小包はどこですか parcel'));
    await page.getByLabel('Search in messages').fill('parcel');
    await page.getByText('2 messages').waitFor();
    expect(await page.locator('mark').allTextContents()).toEqual(['parcel', 'parcel']);
    await page.getByLabel('Of the owner').fill('alice');
    await page.getByText('1 message', { exact: true }).waitFor();
    await page.getByLabel('Of the owner').fill('');
    await page.getByText('2 messages').waitFor();
    await page.getByLabel('Of the role').selectOption('assistant');
    await page.getByText('Nothing was found.').waitFor();
    await page.getByLabel('Of the role').selectOption('');
    await page.getByRole('link', { name: 'Where is my parcel?' }).click();
    await page.waitForURL(/sessions\/one\?at=2$/);
    await page.getByText('past', { exact: true }).waitFor();
    await page.locator('.conversation[aria-busy=false] .message').waitFor();
    expect(await page.locator('.conversation .message .text').allTextContents()).toEqual([
      'Where is my parcel?',
    ]);
  });

  it('given sessions of some owners, when their usage is looked at, then chart, table and CSV say the same', async () => {
    const post = await tenant('used', '/usage');
    for (const owner of ['alice', 'bob']) {
      await post('/v1/sessions', { id: owner, owner });
      await post(`/v1/sessions/${owner}/generate`, { message: 'one two three' });
    }
    await post('/v1/chat', { message: 'and one of nobody' });
    await page.reload();
    const table = () => page.locator('tbody tr').allInnerTexts();
    await page.getByRole('img', { name: /^Tokens by day and model/ }).waitFor();
    const { body } = await api.get<{
      data: { inputTokens: number; outputTokens: number; generations: number }[];
    }>('/v1/usage', { 'colloquy-tenant': 'used' });
    const [day] = body.data;
    expect(body.data).toHaveLength(1);
    expect(day).toMatchObject({ generations: 3 });
    expect((await table()).map((line) => line.split('\t'))).toEqual([
      [
        new Date().toISOString().slice(0, 10),
        'echo',
        '3',
        String(day?.inputTokens),
        String(day?.outputTokens),
        '0',
        '0',
      ],
    ]);
    await page.getByLabel('By', { exact: true }).selectOption('owner');
    await page.getByRole('img', { name: /^Tokens by owner and model/ }).waitFor();
    await eventually(async () => (await table()).length === 3);
    expect((await table()).map((line) => line.split('\t')[0]).sort()).toEqual(['alice', 'bob', 'nobody']);
    const [file] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'CSV' }).click(),
    ]);
    const csv = await readFile(await file.path(), 'utf8');
    expect(csv).toMatch(/^owner,model,generations,inputTokens,outputTokens,cachedTokens,reasoningTokens\r\n/);
    expect(
      csv
        .split('\r\n')
        .slice(1, -1)
        .map((line) => line.split(',')[0])
        .sort(),
    ).toEqual(['', 'alice', 'bob']);
  });
});
