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
  ])(
    'given the positions of all lanes (%s), when they are encoded and decoded, then they are the same',
    (_, positions) => {
      expect(tokens.decode('acme', tokens.encode('acme', positions))).toEqual({ positions, generation: 1 });
      const later = tokens.encode('acme', positions, 300);
      expect(tokens.decode('acme', later)).toEqual({ positions, generation: 300 });
      expect(tokens.decode('acme2', later)).toBeUndefined();
    },
  );

  it('given the positions of all lanes, when they are encoded twice, then the token is the same, also in another process', () => {
    // Clients may keep cursors for ever. This one was issued by the first version.
    const GIVEN_OUT =
      'pyMx874rIX6pQheJgPCnf0eVtjXqvGIemoKxBP1ipYUnoujLjArEKAXK_2Nk9e7XIxoLIzz3UR7QLEC6sWrF6uLTXLqGiVokLEOzxccEqhBC90qB05-coaQ_Ji7wMKGD';
    expect(tokens.encode('acme', place)).toBe(GIVEN_OUT);
    expect(tokens.decode('acme', GIVEN_OUT)).toEqual({ positions: place, generation: 1 });
  });

  it('given consecutive positions, when they are encoded, then the tokens do not show their order', () => {
    const next = [...place];
    next[3] = 3_002;
    const [one, two] = [place, next].map((positions) =>
      Buffer.from(tokens.encode('acme', positions), 'base64url'),
    );
    expect(one?.length).toBe(two?.length);
    expect(one?.filter((byte, index) => byte === two?.[index]).length).toBeLessThan(10);
  });

  it('given a token that is changed anywhere, when it is decoded, then it is rejected', () => {
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
    'given a text that is no token of this tenant (%s), when it is decoded, then it is rejected',
    (_, token) => {
      expect(tokens.decode('acme', token)).toBeUndefined();
    },
  );
});
