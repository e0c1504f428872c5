import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Browser, type Page } from 'playwright-core';
import { axeFaults, describeInChromium, launch, openConsole } from '../support/browser.js';
import { callsTools, says } from '../support/fake-openai.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { bearer } from '../support/tokens.js';
import { createWorld, user, type World } from './fixture.js';

const SHOTS = join(__dirname, '../../screenshots');
const KEY = 'key-of-ops';

/** The views, and what is on them when they are whole. */
const VIEWS = [
  { name: 'sessions', at: '/sessions', whole: '.row >> text=Where is my parcel?' },
  { name: 'search', at: '/search?q=parcel', whole: 'mark >> nth=0' },
  { name: 'session', at: '/sessions/parcel', whole: '.event >> text=GenerationCompleted >> nth=0' },
  { name: 'past', at: '/sessions/parcel?at=5&from=9', whole: 'text=From version 5 to 9' },
  { name: 'usage', at: '/usage', whole: '.bars svg' },
  { name: 'operations', at: '/operations', whole: 'text=No session is parked.' },
] as const;

describeInChromium('how the console looks, and how it is used without a pointer', () => {
  let world: World;
  let url: string;
  let api: Api;
  let browser: Browser;
  beforeAll(async () => {
    world = await createWorld();
    const model = await world.model();
    ({ url } = (await world.node({ COLLOQUY_API_KEYS: `ops:*:${KEY}` })).service);
    api = apiOf(url, bearer(KEY));
    model.next(
      says('It left our warehouse on Monday and should be with you by Thursday.'),
      callsTools([{ id: 'c1', name: 'track', arguments: '{"parcel": "RR123456785NL"}' }]),
    );
    for (const [id, title, owner] of [
      ['order-17', 'Two left shoes', 'bob'],
      ['hebrew', 'איפה החבילה שלי?', 'דוד'],
      ['parcel', 'Where is my parcel?', 'alice'],
    ])
      await api.post('/v1/sessions', { id, title, owner });
    await api.post('/v1/sessions/parcel/generate', {
      message: 'Where is my parcel?',
      instructions: 'Be kind.',
    });
    await api.post('/v1/sessions/parcel/generate', {
      message: 'It is Friday.',
      tools: [{ name: 'track', approval: 'required' }],
    });
    await api.post('/v1/sessions/hebrew/messages', user('החבילה parcel לא הגיעה'));
    browser = await launch();
    await mkdir(SHOTS, { recursive: true });
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });

  it.each(['light', 'dark'] as const)(
    'given the %s scheme, when each view is shown wide and narrow, then axe finds nothing, nothing is cut off, and there is a picture of it',
    async (colorScheme) => {
      const faults: string[] = [];
      for (const width of [1280, 390]) {
        const view = await openConsole(browser, url, { key: KEY, colorScheme, width });
        for (const { name, at, whole } of VIEWS) {
          await view.open(at);
          await view.page.locator(whole).waitFor();
          await view.page.locator('main:not(:has([aria-busy=true]))').waitFor();
          await view.page.screenshot({ path: join(SHOTS, `${name}-${colorScheme}-${width}.png`) });
          faults.push(
            ...(await axeFaults(view.page)).map((fault) => `${name} ${colorScheme} ${width}: ${fault}`),
          );
          const wide = await view.page.evaluate<number>('document.documentElement.scrollWidth');
          if (wide > width) faults.push(`${name} ${width}: is ${wide} pixels wide`);
        }
        await view.open('/sessions/parcel');
        for (const tab of ['State', 'Prompt']) {
          await view.page.getByRole('tab', { name: tab }).click();
          await view.page.getByRole('tabpanel').getByText('{').first().waitFor();
          faults.push(
            ...(await axeFaults(view.page)).map((fault) => `${tab} ${colorScheme} ${width}: ${fault}`),
          );
        }
        // What is not a view of its own: a dialog, and the place where one signs in.
        await view.page.keyboard.press('?');
        await view.page.getByRole('dialog').waitFor();
        faults.push(...(await axeFaults(view.page)).map((fault) => `help ${colorScheme} ${width}: ${fault}`));
        await view.page.keyboard.press('Escape');
        await view.page.getByRole('button', { name: 'Sign out' }).click();
        await view.page.getByRole('heading', { name: 'Sign in' }).waitFor();
        faults.push(
          ...(await axeFaults(view.page)).map((fault) => `sign in ${colorScheme} ${width}: ${fault}`),
        );
        faults.push(...(await view.faults()));
        await view.context.close();
      }
      expect(faults).toEqual([]);
    },
    120_000,
  );

  it('given a theme that is chosen, when the page is loaded again, then it is kept, against what the system has', async () => {
    const { page, open, context } = await openConsole(browser, url, { key: KEY, colorScheme: 'dark' });
    await open('/sessions');
    const ground = () => page.evaluate<string>('getComputedStyle(document.body).backgroundColor');
    await page.getByRole('heading', { name: 'Sessions' }).waitFor();
    const dark = await ground();
    await page.keyboard.press('t');
    const light = await ground();
    expect(light).not.toBe(dark);
    await page.reload();
    await page.getByRole('button', { name: 'Colours: light. Change' }).waitFor();
    expect(await ground()).toBe(light);
    await context.close();
  });

  it('given nothing but a keyboard, when one goes from the list to a session, its slider, a dialog and back, then the focus is always where one is', async () => {
    const { page, open, context } = await openConsole(browser, url, { key: KEY });
    const press = (...keys: string[]) =>
      keys.reduce((before, one) => before.then(() => page.keyboard.press(one)), Promise.resolve());
    const focused = () =>
      page.evaluate<string>(`(() => { const { activeElement: one } = document;
      return [one.tagName, one.id, one.getAttribute('aria-label') ?? one.textContent.trim().slice(0, 40)].join(' '); })()`);
    const isFocused = (part: string) =>
      eventually(async () => (await focused()).includes(part)).catch(async () => {
        expect(await focused()).toContain(part);
      });
    await open('/sessions');
    await page.locator('.row').first().waitFor();

    // The first thing that is reached leads past the navigation, and can be seen.
    await press('Tab');
    await isFocused('Skip to the content');
    expect(await page.evaluate('document.activeElement.getBoundingClientRect().top')).toBeGreaterThanOrEqual(
      0,
    );
    await press('Enter');
    await isFocused('MAIN main');

    await press('j', 'j', 'k');
    await isFocused('Where is my parcel?');
    expect(await visibleFocus(page)).toBe(true);
    await press('Enter');
    await isFocused('H1  Where is my parcel?');

    // Tab reaches the slider, and arrows move it.
    await eventually(async () => {
      await press('Tab');
      return (await focused()).includes('slider');
    });
    expect(await visibleFocus(page)).toBe(true);
    await press('ArrowLeft');
    await page.getByText('past', { exact: true }).waitFor();
    await page.locator('[aria-valuetext^="8 of 9: MessageAppended, "]').waitFor();
    await press('[');
    await eventually(async () => (await page.getByRole('slider').inputValue()) === '7');
    await press('Home');
    await eventually(async () => (await page.getByRole('slider').inputValue()) === '1');
    await press('.');
    await page.getByText('now', { exact: true }).waitFor();

    // A dialog keeps the focus, Esc closes it and nothing else, and the focus is back.
    const rename = page.getByRole('button', { name: 'Rename' });
    await rename.focus();
    await press('Enter');
    await isFocused('INPUT');
    for (let count = 0; count < 6; count += 1) {
      await press('Tab');
      expect(
        await page.evaluate(
          `document.activeElement === document.body || document.querySelector('dialog').contains(document.activeElement)`,
        ),
      ).toBe(true);
    }
    await press('Escape');
    await isFocused('Rename');

    // Tabs are one stop, and arrows go through them.
    await page.locator('#tab-events').focus();
    await press('ArrowRight');
    await isFocused('tab-state');
    await page.getByText('Open tool calls').first().waitFor();
    await press('c');
    await isFocused('composer');
    // In a field, keys are letters, and Esc leaves it.
    await press('j', 'Escape');
    expect(await page.locator('#composer').inputValue()).toBe('j');
    await press('Escape');
    await page.getByRole('heading', { name: 'Sessions' }).waitFor();
    // One is back where one left.
    await isFocused('Where is my parcel?');

    await press('?');
    await page.getByRole('dialog', { name: 'Keys' }).waitFor();
    await press('Escape');
    await isFocused('Where is my parcel?');
    for (const [key, heading] of [
      ['f', 'Search'],
      ['u', 'Usage'],
      ['o', 'Operations'],
      ['s', 'Sessions'],
    ]) {
      await press('Escape', 'g', key ?? '');
      await page.getByRole('heading', { level: 1, name: heading ?? '' }).waitFor();
    }
    await context.close();
  }, 60_000);
});

/** Whether what has the focus looks otherwise than without it. */
const visibleFocus = (page: Page): Promise<boolean> =>
  page.evaluate<boolean>(`(() => { const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
    return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2; })()`);
