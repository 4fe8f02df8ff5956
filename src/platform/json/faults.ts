import { type ParseErrorCode, printParseErrorCode, visit } from 'jsonc-parser'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** Texts by the names of the parser's errors. */
const faultTexts: Record<string, string> = {
  InvalidSymbol: 'unexpected characters',
  InvalidNumberFormat: 'a number is malformed',
  PropertyNameExpected: 'a name in double quotes is expected',
  ValueExpected: 'a value is expected',
  ColonExpected: 'a colon is expected',
  CommaExpected: 'a comma is expected',
  CloseBraceExpected: 'the end is missing: } is expected',
  CloseBracketExpected: 'the end is missing: ] is expected',
  EndOfFileExpected: 'there is more after its end',
  InvalidCommentToken: 'a comment is not allowed',
  UnexpectedEndOfComment: 'a comment is not allowed',
  UnexpectedEndOfString: 'a text has no closing quote on its line',
  UnexpectedEndOfNumber: 'a number is malformed',
  InvalidUnicode: 'a text has a malformed \\u escape',
  InvalidEscapeCharacter: 'a text has an unknown escape: write \\\\ for a backslash',
  InvalidCharacter: 'a text has a control character: write \\n for a line end',
}

interface Fault {
  code: ParseErrorCode
  offset: number
  line: number
  column: number
}

class FirstFault extends Error {
  readonly fault: Fault
  constructor(fault: Fault) {
    super()
    this.fault = fault
  }
}

function firstFault(text: string): Fault | null {
  try {
    const onError = (code: ParseErrorCode, offset: number, _length: number, line: number, column: number) => {
      throw new FirstFault({ code, offset, line: line + 1, column: column + 1 })
    }
    visit(text, { onError }, { disallowComments: true })
    return null
  } catch (error) {
    if (error instanceof FirstFault) return error.fault
    throw error
  }
}

const isJson = (text: string): boolean => {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

/** The error for a body that a parser refused: the fault and its position. It quotes nothing of the body. */
export function refusedJson(body: string): AppError {
  const text = body.replace(/^\ufeff/, '')
  if (isJson(text)) return new AppError('invalid_json', texts.prototypeKey)
  const fault = firstFault(text)
  if (!fault) return new AppError('invalid_json', texts.notJson(''))
  const { code, offset, line, column } = fault
  const isTrailingComma = /,\s*$/.test(text.slice(0, offset)) && '}]'.includes(text[offset] ?? ' ')
  const what = isTrailingComma ? 'no comma may stand before } or ]' : faultTexts[printParseErrorCode(code)]
  const message = texts.notJson(`: ${what}, at line ${line}, column ${column}`)
  return new AppError('invalid_json', text[offset] === "'" ? `${message} ${texts.wrongQuotes}` : message)
}
