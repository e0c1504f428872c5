import { type Browser, type Page } from 'playwright-core';
import { describeInChromium, launch, openConsole, type ConsolePage } from '../support/browser.js';
import { colloquy } from '../support/colloquy.js';
import { callsTools, conducted, type FakeOpenAi, fails, says } from '../support/fake-openai.js';
import { type Api, eventually } from '../support/http.js';
import { masterKey } from '../support/master-keys.js';
import { createWorld, type EventAnswer, logged, say, texts, user, type World } from './fixture.js';

/** A picture of one red point. */
const PICTURE =
  'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==';

describeInChromium('a session in the console', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  let browser: Browser;
  let view: ConsolePage;
  let page: Page;
  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    ({ api } = await world.node({ COLLOQUY_MASTER_KEY: masterKey('one') }));
    browser = await launch();
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });
  beforeEach(async () => {
    // Or a test that fails would leave its replies to the next one.
    model.forget();
    view = await openConsole(browser, api.url);
    ({ page } = view);
  });
  afterEach(async () => {
    expect(await view.faults()).toEqual([]);
    await view.context.close();
  });

  const open = async (id: string, query = ''): Promise<void> => {
    await view.open(`/sessions/${id}${query}`);
    await page.getByRole('heading', { level: 1 }).waitFor();
  };
  /** Texts of the messages that are shown, once they are these. */
  const shows = async (...expected: string[]): Promise<void> => {
    const shown = () => page.locator('.conversation .message .text').allTextContents();
    await eventually(async () => JSON.stringify(await shown()) === JSON.stringify(expected)).catch(
      async () => {
        expect(await shown()).toEqual(expected);
      },
    );
  };
  const send = async (text: string): Promise<void> => {
    // The text of a reply is whole before the reply is over, and until then one cannot speak.
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
    await page.getByLabel('Message', { exact: true }).fill(text);
    await page.keyboard.press('Enter');
  };
  const press = (name: string): Promise<void> => page.getByRole('button', { name, exact: true }).click();
  const message = (text: string) => page.locator('.conversation .message', { hasText: text });
  /** Moves the slider to a version. */
  const slide = async (version: number): Promise<void> => {
    await page.getByRole('slider', { name: 'Moment of the session' }).fill(String(version));
  };
  const panel = async (name: string) => {
    await page.getByRole('tab', { name }).click();
    return page.getByRole('tabpanel');
  };

  it('given a session, when one says something, then the reply is shown as it is written, and the events beside it', async () => {
    await api.post('/v1/sessions', { id: 'chat', title: 'A chat', owner: 'alice' });
    const reply = conducted();
    model.next(reply.reply);
    await open('chat');
    await page.getByText('Nothing has been said yet.').waitFor();
    await send('What is React?');
    await reply.asked;
    reply.say('A ');
    await shows('What is React?', 'A ');
    expect(await page.getByText('writing').count()).toBe(1);
    reply.say('library.');
    await shows('What is React?', 'A library.');
    reply.end();
    await page.getByText('writing').waitFor({ state: 'detached' });
    await shows('What is React?', 'A library.');
    await page.getByRole('button', { name: 'GenerationCompleted' }).waitFor();
    expect(await texts(api, 'chat')).toEqual(['What is React?', 'A library.']);
    expect(await page.title()).toBe('chat · Sessions · Colloquy');
  });

  it('given a reply that is being written, when it is cancelled, then what had come stays and says that it is not whole', async () => {
    await api.post('/v1/sessions', { id: 'cancelled' });
    const reply = conducted();
    model.next(reply.reply);
    await open('cancelled');
    await send('Tell me a story.');
    await reply.asked;
    reply.say('Once');
    await shows('Tell me a story.', 'Once');
    await press('Cancel');
    await reply.abandoned;
    await message('Once').getByText('incomplete').waitFor();
    await page.getByRole('button', { name: 'Send' }).waitFor();
  });

  it('given a reply that another client has asked for, when the page is opened in the middle of it, then it is shown from its beginning', async () => {
    await api.post('/v1/sessions', { id: 'shared' });
    const reply = conducted();
    model.next(reply.reply);
    const asked = api.post('/v1/sessions/shared/generate', { message: 'Hello' });
    await reply.asked;
    reply.say('Good ');
    await open('shared');
    await shows('Hello', 'Good ');
    reply.say('morning.');
    reply.end();
    await asked;
    await shows('Hello', 'Good morning.');
    await page.getByText('writing').waitFor({ state: 'detached' });
    // What others do later is seen as well.
    await say(api, 'shared', 'From elsewhere');
    await shows('Hello', 'Good morning.', 'From elsewhere');
  });

  it('given a model that fails, when it is asked, then the page says so, and tries again when it is told to', async () => {
    await api.post('/v1/sessions', { id: 'failed' });
    model.next(fails(400, 'GPU lost'), says('Here I am.'));
    await open('failed');
    await send('Are you there?');
    await page.getByRole('alert').getByText('model-failed').waitFor();
    await press('Try again');
    await shows('Are you there?', 'Here I am.');
  });

  it('given replies, when one is answered again, edited, or rewound to, then the history is what one wanted and the log keeps the rest', async () => {
    await api.post('/v1/sessions', { id: 'edited' });
    model.next(says('One.'), says('Two.'), says('Again two.'), says('Another one.'));
    await open('edited');
    await send('first');
    await shows('first', 'One.');
    await send('second');
    await shows('first', 'One.', 'second', 'Two.');
    await press('Regenerate');
    await shows('first', 'One.', 'second', 'Again two.');
    await message('One.').getByRole('button', { name: 'Rewind to here' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Rewind' }).click();
    await shows('first', 'One.');
    await message('first').getByRole('button', { name: 'Edit' }).click();
    await page.getByRole('dialog').getByLabel('Message').fill('first, in other words');
    await page.getByRole('dialog').getByRole('button', { name: 'Send' }).click();
    await shows('first, in other words', 'Another one.');
    expect(await texts(api, 'edited')).toEqual(['first, in other words', 'Another one.']);
    const said = (await logged(world.database, 'edited')).filter(({ type }) => type === 'MessageAppended');
    expect(said).toHaveLength(7);
  });

  it('given a tool that needs an approval, when the model calls it, then it can be approved and answered, and the model goes on', async () => {
    await api.post('/v1/sessions', { id: 'tools' });
    model.next(
      callsTools([{ id: 'c1', name: 'weather', arguments: '{"city":"Rome"}' }]),
      says('It is 18 °C.'),
    );
    await open('tools');
    await page.getByText('Model, instructions, tools').click();
    await page
      .getByLabel('Tools, as a JSON list of name, description, parameters and approval')
      .fill('[{"name": "weather", "parameters": {"type": "object"}, "approval": "required"}]');
    await send('How warm is it in Rome?');
    await page.getByText('weather waits for its result.').waitFor();
    expect(await message('{"city":"Rome"}').count()).toBe(1);
    await press('Approve once');
    await page.getByText('approved, once').waitFor();
    await page.getByLabel('Result of weather').fill('18');
    await press('Answer');
    await shows('How warm is it in Rome?', '{"city":"Rome"}', '18', 'It is 18 °C.');
    expect(model.last.messages.at(-1)).toMatchObject({ role: 'tool', content: '18', tool_call_id: 'c1' });
    expect((await api.get('/v1/sessions/tools/approvals')).body).toEqual({ data: [] });
  });

  it('given pictures, when they stand in a message, then those within it are shown and no other is fetched', async () => {
    await api.post('/v1/sessions', { id: 'pictures' });
    const content = [
      { type: 'text', text: 'Look' },
      { type: 'image', url: PICTURE },
      { type: 'image', url: `${api.url}/health/live?picture` },
      { type: 'image', url: `data:image/svg+xml;base64,${Buffer.from('<svg/>').toString('base64')}` },
    ];
    await api.post('/v1/sessions/pictures/messages', { role: 'user', content });
    const fetched: string[] = [];
    page.on('request', (request) => fetched.push(request.url()));
    await open('pictures');
    const picture = page.getByAltText('Picture in the message');
    await picture.waitFor();
    expect(await page.evaluate('[...document.images].map((one) => one.naturalWidth)')).toEqual([1]);
    // The line has room for it: the next one begins where it ends.
    await say(api, 'pictures', 'below');
    await message('below').waitFor();
    await eventually(() =>
      page.evaluate<boolean>(`(() => {
        const [first, second] = [...document.querySelectorAll('.conversation .line')].map((one) => one.getBoundingClientRect());
        return Math.abs(first.bottom - second.top) < 1;
      })()`),
    );
    expect(fetched.filter((url) => url.includes('?picture'))).toEqual([]);
    await shows('Look', `${api.url}/health/live?picture`, 'below');
  });

  describe('its past', () => {
    beforeAll(async () => {
      model.next(says('One.'), says('Two.'));
      await api.post('/v1/sessions', { id: 'past' });
      await api.post('/v1/sessions/past/generate', { message: 'first', instructions: 'Be short.' });
      await api.put('/v1/sessions/past/approvals/weather', { scope: 'session' });
      await api.post('/v1/sessions/past/generate', { message: 'second' });
      await api.post('/v1/sessions/past/reset', { reason: 'enough' });
      await say(api, 'past', 'after the reset');
    });

    it('given events, when the slider is moved, then history, state, approvals, usage and prompt are those of that moment', async () => {
      await open('past');
      await shows('after the reset');
      await slide(5);
      await shows('first', 'One.');
      const state = await panel('State');
      await state.getByText('5, incarnation 1').waitFor();
      const fact = (name: string) => state.locator(`dt:text-is("${name}") + dd`).textContent();
      expect(await fact('Approvals')).toBe('none');
      const early = await fact('Usage');
      await slide(6);
      await eventually(async () => (await fact('Approvals')) === 'weather: session');
      await slide(10);
      await shows('first', 'One.', 'second', 'Two.');
      await eventually(async () => (await fact('Usage')) !== early);
      await eventually(async () => (await fact('Messages')) === '4, history since version 1');
      await slide(11);
      await page.getByText('Nothing has been said at this moment.').waitFor();
      await eventually(async () => (await fact('Approvals')) === 'none');
      await slide(8);
      const prompt = await panel('Prompt');
      await prompt.getByText('Messages, 3').waitFor();
      await slide(5);
      await prompt.getByText('Messages, 1').waitFor();
      expect(await prompt.textContent()).toContain('Be short.');
      // The field to write in belongs to the present.
      expect(await page.getByLabel('Message', { exact: true }).count()).toBe(0);
      await press('Back to now');
      await shows('after the reset');
    });

    it('given an address with a moment, when it is opened, then it is that moment, and the address follows the slider', async () => {
      await open('past', '?at=4');
      await shows('first', 'One.');
      expect(await page.getByRole('slider').inputValue()).toBe('4');
      await slide(2);
      await shows('first');
      await page.waitForURL(/at=2$/);
      await press('Copy link');
      const link = await page.evaluate<string>('navigator.clipboard.readText()');
      expect(link).toBe(`${api.url}/console#/sessions/past?at=2`);
      // An event of the list leads to its moment too.
      await page.getByRole('button', { name: 'GenerationCompleted' }).first().click();
      await shows('first', 'One.');
      await page.waitForURL(/at=5$/);
    });

    it('given two moments, when they are compared, then the page shows what came and what left in between', async () => {
      await open('past', '?at=5');
      await shows('first', 'One.');
      await press('Compare from here');
      await slide(10);
      const changes = page.getByRole('tabpanel');
      await changes.getByText('From version 5 to 10').waitFor();
      await changes.getByText('Messages that came, 2').waitFor();
      await changes.getByText('approved: weather').waitFor();
      await slide(12);
      await changes.getByText('Messages that left, 2').waitFor();
      expect(new URL(page.url()).hash).toContain('from=5');
    });

    it('given a moment, when one forks there, then the new session begins with the history of then', async () => {
      await open('past', '?at=5');
      await shows('first', 'One.');
      await page.locator('.moment').getByRole('button', { name: 'Fork from here' }).click();
      await page.getByText('forked from past').waitFor();
      await shows('first', 'One.');
      const fork = decodeURIComponent(new URL(page.url()).hash.split('/')[2] ?? '');
      expect(await texts(api, fork)).toEqual(['first', 'One.']);
    });
  });

  it('given a session that was deleted and made again, when it is opened, then each incarnation is shown as what it is', async () => {
    await api.post('/v1/sessions', { id: 'twice' });
    await say(api, 'twice', 'in the first life');
    await api.delete('/v1/sessions/twice');
    await open('twice');
    await page.getByText('deleted', { exact: true }).waitFor();
    await shows('in the first life');
    expect(await page.getByText('as it ended').count()).toBe(1);
    expect(await page.getByLabel('Message', { exact: true }).count()).toBe(0);
    await api.post('/v1/sessions', { id: 'twice' });
    await say(api, 'twice', 'in the second life');
    await open('twice', '?at=2');
    await page.reload();
    await shows('in the first life');
    await page.getByText('incarnation 2', { exact: true }).waitFor();
    await press('Back to now');
    await shows('in the second life');
  });

  it('given a session, when its erasure is scheduled, then the page says when, and it can be called off', async () => {
    await api.post('/v1/sessions', { id: 'planned' });
    await say(api, 'planned', 'a secret');
    await open('planned');
    const dialog = page.getByRole('dialog');
    await press('Erase');
    await dialog.getByLabel(/^When/).fill('2037-01-02T03:04');
    await dialog.getByLabel('Type planned to confirm').fill('planned');
    await dialog.getByRole('button', { name: 'Erase for ever' }).click();
    await page
      .getByRole('status')
      .getByText(/^To be erased on .*2037/)
      .waitFor();
    await page.getByRole('button', { name: /ErasureScheduled\s*for 2037-01-02T03:04/ }).waitFor();
    await press('Call off');
    await page.getByText(/^To be erased on/).waitFor({ state: 'detached' });
    await page.getByRole('button', { name: /ErasureCancelled/ }).waitFor();
    expect((await api.get('/v1/sessions/planned/messages')).text).toContain('a secret');
  });

  it('given a session, when it is erased, then what was said is gone from every moment, and the page says that it was erased', async () => {
    await api.post('/v1/sessions', { id: 'erased' });
    await say(api, 'erased', 'a secret');
    await open('erased');
    await shows('a secret');
    await press('Erase');
    const dialog = page.getByRole('dialog');
    expect(await dialog.getByRole('button', { name: 'Erase for ever' }).isDisabled()).toBe(true);
    await dialog.getByLabel('Type erased to confirm').fill('erased');
    await dialog.getByRole('button', { name: 'Erase for ever' }).click();
    await page.getByRole('button', { name: 'SessionErased' }).waitFor();
    await eventually(async () => !(await page.content()).includes('a secret'));
    await page.getByRole('button', { name: 'MessageAppended erased' }).click();
    await page.getByText('What was said here was erased').waitFor();
    const { body } = await api.get<{ data: EventAnswer[] }>('/v1/sessions/erased/events');
    expect(body.data.map(({ type }) => type)).toContain('SessionErased');
  });

  it('given a session, when it is exported, then the file is one that can be imported', async () => {
    await api.post('/v1/sessions', { id: 'kept', title: 'To keep' });
    await api.post('/v1/sessions/kept/messages', { messages: [user('one'), user('two — ünïcode')] });
    await open('kept');
    await shows('one', 'two — ünïcode');
    const [file] = await Promise.all([page.waitForEvent('download'), press('Export')]);
    expect(file.suggestedFilename()).toBe('kept.jsonl');
    const other = await createWorld();
    try {
      const done = await colloquy(['import', await file.path()], {
        env: { DATABASE_URL: other.database.url },
        cwd: await other.folder(),
      });
      expect({ code: done.code, err: done.err }).toMatchObject({ code: 0 });
      expect((await logged(other.database, 'kept')).slice(0, 3).map(({ type }) => type)).toEqual([
        'SessionCreated',
        'MessageAppended',
        'MessageAppended',
      ]);
    } finally {
      await other.end();
    }
  });
});
