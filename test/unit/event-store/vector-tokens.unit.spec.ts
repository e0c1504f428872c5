import { VectorTokens } from '../../../src/event-store/vector-tokens.js';

const key = (text: string) => Buffer.from(text, 'hex');
const tokens = new VectorTokens(key('000102030405060708090a0b0c0d0e0f'), 16);
const place = Array.from({ length: 16 }, (_, lane) => lane * 1_000 + 1);
const FAR = Array.from({ length: 16 }, () => 2 ** 40 - 1);

describe('VectorTokens', () => {
  it.each([
    ['the beginning', Array.from({ length: 16 }, () => 0)],
    ['somewhere', place],
    ['as far as it goes', FAR],
  ])('given a place (%s), when it is encoded and decoded, then it is the same', (_, positions) => {
    expect(tokens.decode('acme', tokens.encode('acme', positions))).toEqual(positions);
  });

  it('given a place, when it is encoded twice, then the text is the same, also in another process', () => {
    // Clients keep cursors for as long as they like: this one was given out by the first version.
    const GIVEN_OUT =
      'pyMx874rIX6pQheJgPCnf0eVtjXqvGIemoKxBP1ipYUnoujLjArEKAXK_2Nk9e7XIxoLIzz3UR7QLEC6sWrF6uLTXLqGiVokLEOzxccEqhBC90qB05-coaQ_Ji7wMKGD';
    expect(tokens.encode('acme', place)).toBe(GIVEN_OUT);
    expect(tokens.decode('acme', GIVEN_OUT)).toEqual(place);
  });

  it('given places one after the other, when they are encoded, then the texts do not show it', () => {
    const next = [...place];
    next[3] = 3_002;
    const [one, two] = [place, next].map((positions) =>
      Buffer.from(tokens.encode('acme', positions), 'base64url'),
    );
    expect(one?.length).toBe(two?.length);
    expect(one?.filter((byte, index) => byte === two?.[index]).length).toBeLessThan(10);
  });

  it('given a text that is changed anywhere, when it is decoded, then that is noticed', () => {
    const token = tokens.encode('acme', place);
    for (let index = 0; index < token.length; index += 1) {
      const changed = token.slice(0, index) + (token[index] === 'A' ? 'B' : 'A') + token.slice(index + 1);
      expect(tokens.decode('acme', changed)).toBeUndefined();
    }
  });

  it.each([
    ['nothing', ''],
    ['too short', tokens.encode('acme', place).slice(0, -4)],
    ['too long', `${tokens.encode('acme', place)}AAAA`],
    ['another spelling', `${tokens.encode('acme', place)}=`],
    ['zeros', Buffer.alloc(96).toString('base64url')],
    ['no base64', 'Ä'.repeat(128)],
    ['a place of another tenant', tokens.encode('acme2', place)],
    [
      'a place of fewer lanes',
      new VectorTokens(key('000102030405060708090a0b0c0d0e0f'), 8).encode('acme', place),
    ],
    ['a place of another log', new VectorTokens(key('f'.repeat(32)), 16).encode('acme', place)],
  ])(
    'given a text that is no place of this tenant (%s), when it is decoded, then that is noticed',
    (_, token) => {
      expect(tokens.decode('acme', token)).toBeUndefined();
    },
  );
});
