import { visible } from '../../../console/src/ui/format.js';
import { csvOf, daysOf, type UsageRow } from '../../../console/src/usage/rows.js';

const row = (more: Partial<UsageRow>): UsageRow => ({
  ...{ model: 'm', generations: 1, inputTokens: 2, outputTokens: 3, cachedTokens: 4, reasoningTokens: 5 },
  ...more,
});

describe('what the console makes of texts and figures', () => {
  it('given usage by day, when it is made into CSV, then each row has its figures, and lines end as RFC 4180 has it', () => {
    expect(csvOf([row({ day: '2026-01-01' })], 'day')).toBe(
      'day,model,generations,inputTokens,outputTokens,cachedTokens,reasoningTokens\r\n2026-01-01,m,1,2,3,4,5\r\n',
    );
  });

  it.each([
    ['commas, "quotes"\nand lines', '"commas, ""quotes""\nand lines"'],
    ['=HYPERLINK("https://evil.example")', `"'=HYPERLINK(""https://evil.example"")"`],
    ['+1', "'+1"],
    ['-1', "'-1"],
    ['@SUM(A1)', "'@SUM(A1)"],
  ])('given the owner %j, when it stands in CSV, then it is one cell, and no formula', (owner, cell) => {
    expect(csvOf([row({ owner })], 'owner').split('\r\n')[1]).toBe(`${cell},m,1,2,3,4,5`);
  });

  it('given a period, when its days are listed, then all of them are there, also across months', () => {
    expect(daysOf({ from: '2028-02-28', to: '2028-03-01' })).toEqual([
      '2028-02-28',
      '2028-02-29',
      '2028-03-01',
    ]);
  });

  it('given control characters, when a text is shown, then each is seen by its picture, and blanks and lines stay', () => {
    expect(visible('a\tb\nc \u0000 \u0007 \u001b[31m \u007f \r')).toBe('a\tb\nc ␀ ␇ ␛[31m ␡ ␍');
  });
});
