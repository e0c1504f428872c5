import { type FakeOpenAi } from '../support/fake-openai.js';
import { type Api, expectProblem } from '../support/http.js';
import { createWorld, type MessageView, type World } from './fixture.js';

const MIB = 1024 * 1024;

describe('photographs', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    ({ api } = await world.node());
  });
  afterAll(() => world.end());

  /** Random, so that it takes as much room in the database as a photograph does. */
  const photograph = (bytes: number): string => {
    const random = Buffer.alloc(bytes);
    for (let index = 0; index < bytes; index += 4) random.writeInt32LE((Math.random() * 2 ** 31) | 0, index);
    return `data:image/jpeg;base64,${random.toString('base64')}`;
  };
  const said = (url: string, text: string) => ({
    role: 'user',
    content: [
      { type: 'text', text },
      { type: 'image', url },
    ],
  });
  const page = async (id: string, query: string) =>
    (
      await api.get<{ data: MessageView[]; nextCursor: string | null }>(
        `/v1/sessions/${id}/messages?${query}`,
      )
    ).body;
  const texts = (messages: readonly MessageView[]) =>
    messages.map(({ content }) => (content as { text: string }[])[0]?.text);

  it('given a photograph, when it is sent with a message, then it is kept, read and shown to the model', async () => {
    await api.post('/v1/sessions', { id: 'p-1' });
    const url = photograph(8 * MIB);
    const answer = await api.post('/v1/sessions/p-1/generate', { message: said(url, 'Look.') });
    expect(answer.status).toBe(200);
    expect(JSON.stringify(model.last.messages).includes(url)).toBe(true);
    const { data } = await page('p-1', 'limit=1');
    expect((data[0]?.content as { url?: string }[])[1]?.url === url).toBe(true);
  });

  it('given many photographs, when they are read in pages of any order, then a page holds few of them, and each comes once', async () => {
    await api.post('/v1/sessions', { id: 'p-2' });
    const url = photograph(2 * MIB);
    const all = Array.from({ length: 9 }, (_, n) => `n${n}`);
    for (const text of all)
      expect((await api.post('/v1/sessions/p-2/messages', said(url, text))).status).toBe(201);
    for (const order of ['asc', 'desc']) {
      const seen: (string | undefined)[] = [];
      for (let cursor = ''; ;) {
        const { data, nextCursor } = await page('p-2', `limit=50&order=${order}${cursor}`);
        expect(data.length).toBeGreaterThan(0);
        expect(data.length).toBeLessThan(4);
        seen.push(...texts(data));
        if (nextCursor === null) break;
        cursor = `&cursor=${nextCursor}`;
      }
      expect(seen).toEqual(order === 'asc' ? all : all.toReversed());
    }
  });

  it('given bodies past the limits, when they are sent, then each limit names its setting, and other routes keep theirs', async () => {
    await api.post('/v1/sessions', { id: 'p-3' });
    const large = await api.post('/v1/sessions/p-3/messages', {
      role: 'user',
      content: 'x'.repeat(17 * MIB),
    });
    expect(expectProblem(large, 413, 'body-too-large').detail).toBe(
      'The body is larger than 16777216 bytes, which is the limit of this server (server.messageLimit).',
    );
    const other = await api.patch('/v1/sessions/p-3', { title: 'x'.repeat(2 * MIB) });
    expect(expectProblem(other, 413, 'body-too-large').detail).toContain('1048576 bytes');
  });
});
