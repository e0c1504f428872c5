import { type Api } from '../support/http.js';
import {
  createWorld,
  type EventAnswer,
  type MessageView,
  type SessionAnswer,
  type World,
} from './fixture.js';

/** The steps of the documentation of sessions, with the built-in model. */
describe('a support desk', () => {
  let world: World;
  let api: Api;
  beforeAll(async () => {
    world = await createWorld();
    ({ api } = await world.node());
  });
  afterAll(() => world.end());

  it('given a service without settings, when all steps of the guide are taken, then each step does what the guide says', async () => {
    // Create a session with a given id and one with a generated id.
    const created = await api.post<SessionAnswer>('/v1/sessions', { id: 'user-alice-support' });
    expect([created.status, created.body.id]).toEqual([201, 'user-alice-support']);
    const generated = await api.post<SessionAnswer>('/v1/sessions');
    expect(generated.body.id).toMatch(/^sess_/);

    // Chat. The session remembers, and the session of another user does not.
    const chat = async (message: string, sessionId?: string) =>
      (await api.post<{ response: string; sessionId: string }>('/v1/chat', { message, sessionId })).body;
    await chat('Hi!', 'user-alice-support');
    const bob = await chat('Hello!');
    expect(bob.sessionId).not.toBe('user-alice-support');
    const remembered = await chat('What did I just say?', 'user-alice-support');
    expect(remembered.response).toContain('Hi!');
    expect((await chat('What did I just say?', bob.sessionId)).response).not.toContain('Hi!');
    const answer = await api.post<{ content: string }>('/v1/sessions/user-alice-support/generate', {
      message: 'How does it differ from Vue?',
    });
    expect(answer.body.content).toContain('How does it differ from Vue?');

    // History.
    const history = async () =>
      (await api.get<{ data: MessageView[] }>('/v1/sessions/user-alice-support/messages')).body.data;
    expect((await history()).map((message) => message.role)).toEqual([
      'user',
      'assistant',
      'user',
      'assistant',
      'user',
      'assistant',
    ]);
    expect((await history())[0]?.content).toBe('Hi!');

    // Existing sessions, and one that does not exist.
    const list = async () =>
      (await api.get<{ data: SessionAnswer[] }>('/v1/sessions')).body.data.map((session) => session.id);
    expect((await list()).sort()).toEqual([bob.sessionId, generated.body.id, 'user-alice-support'].sort());
    expect((await api.get('/v1/sessions/user-123')).status).toBe(404);

    // Reset: the session still exists, its history is gone.
    expect((await api.post('/v1/sessions/user-alice-support/reset')).status).toBe(200);
    expect(await history()).toEqual([]);
    expect((await api.get('/v1/sessions/user-alice-support')).status).toBe(200);
    expect((await chat('What did I just say?', 'user-alice-support')).response).not.toContain('Vue');

    // Delete: the session is gone, and a new session with its id remembers nothing.
    expect((await api.delete('/v1/sessions/user-alice-support')).status).toBe(204);
    expect((await api.get('/v1/sessions/user-alice-support')).status).toBe(404);
    expect(await list()).not.toContain('user-alice-support');
    const trail = await api.get<{ data: EventAnswer[] }>('/v1/sessions/user-alice-support/events');
    const turn = ['MessageAppended', 'GenerationStarted', 'MessageAppended', 'GenerationCompleted'];
    expect(trail.body.data.map((event) => event.type)).toEqual([
      'SessionCreated',
      ...[...turn, ...turn, ...turn],
      'ConversationReset',
      ...turn,
      'SessionDeleted',
    ]);
    const anew = await chat('Who am I?', 'user-alice-support');
    expect(anew.response).toContain('1 message');
    expect((await history()).length).toBe(2);
  });

  it('given what the service prints at its start, when its commands are run, then they work', async () => {
    const [first = ''] = world.output().split('\n');
    const printed = JSON.parse(first) as { readonly model: string; readonly try: readonly string[] };
    expect(printed.model).toContain('echo');
    const commands = printed.try.flatMap((line) => [
      ...line.matchAll(/^curl -s (\S+)(?: -H '(.+?): (.+?)' -d '(.+?)')?$/g),
    ]);
    expect(commands.length).toBeGreaterThanOrEqual(3);
    for (const [, url = '', header, value = '', body] of commands) {
      const path = url.slice(api.url.length);
      const answer =
        header === undefined ? await api.get(path) : await api.send('POST', path, body, { [header]: value });
      expect(answer.status).toBe(200);
    }
  });
});
