/** What a part of the view gets that is about one cell. */
export interface OfCell {
  /** Its name; undefined where there is only one, which needs none. */
  readonly cell: string | undefined;
}
